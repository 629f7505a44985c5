//! LXC config as it is read: the little an image may bring.
//!
//! The names of LXC 1 and 2 (`lxc.utsname`, `lxc.tty`, `lxc.network.type`...) are understood. Nothing unknown is skipped:
//! a key that cannot be applied is refused by name.
//!
//! An image may come from anybody, and to stock LXC its config is a root shell on the node: `lxc.hook.*`,
//! `lxc.net.*.script.*` and `lxc.init.cmd` run programs, `lxc.mount.*`, `lxc.rootfs.*` and `lxc.include` name its files,
//! `lxc.cgroup*.devices.allow` its disks, `lxc.net.*`, `lxc.namespace.*` its network and processes, `lxc.idmap` its users;
//! `lxc.apparmor.*`, `lxc.selinux.*`, `lxc.seccomp.*`, `lxc.no_new_privs = 0`, `lxc.sysctl.*` and `lxc.proc.*` lift what
//! confines. So what is taken is listed, and each can only take rights away or touch the container itself:
//!
//! - `lxc.environment`, as NAME=value (a bare NAME is LXC's word for "the node's own value"): read inside, after every
//!   right is gone, by a shell of the same image; what the launcher sets comes after it and wins;
//! - `lxc.cap.drop` and `lxc.cap.keep`: what is kept is the node's list less these, never more;
//! - `lxc.prlimit.*`: never above what the container would have without it;
//! - `lxc.mount.entry` of a tmpfs: shows nothing of the node, counts against the job's memory, gets nosuid and nodev, takes
//!   no option but sizes, owners and modes, and covers none of the places that berth itself mounts.

use super::legacy::Translator;
use super::{ImageConfig, LxcConfigError, MountEntry, Rlimit};
use crate::security;

/// One `key = value`, the key in today's spelling.
pub(super) struct Setting {
    line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

impl ImageConfig {
    /// Reads an image's own `config`. What would widen a task's rights, name a path of the node or set what the job
    /// decides is refused by name; what berth does anyway (a fresh /dev, pts, no console) may stand there.
    pub fn from_lxc(text: &str) -> Result<ImageConfig, LxcConfigError> {
        let mut image = ImageConfig::default();
        for setting in settings(text)? {
            image.take(&setting)?;
        }
        Ok(image)
    }

    fn take(&mut self, setting: &Setting) -> Result<(), LxcConfigError> {
        if is_settled(setting)? {
            return Ok(());
        }
        match setting.key.as_str() {
            "lxc.environment" => collect(&mut self.environment, setting, Setting::environment),
            "lxc.cap.drop" => {
                setting.capabilities()?;
                extend_words(&mut self.cap_drop, setting);
                Ok(())
            }
            "lxc.cap.keep" if setting.value.is_empty() => {
                self.cap_keep = None;
                Ok(())
            }
            "lxc.cap.keep" => {
                setting.capabilities()?;
                keep_words(self.cap_keep.get_or_insert_default(), setting);
                Ok(())
            }
            "lxc.no_new_privs" => match setting.flag()? {
                true => Ok(()),
                false => setting.refuse("berth never lets a command gain privileges"),
            },
            "lxc.mount.entry" if setting.mount_entry().is_ok_and(|entry| is_mounted_anyway(&entry)) => Ok(()),
            "lxc.mount.entry" => collect(&mut self.mounts, setting, Setting::tmpfs_entry),
            _ => self.take_rlimit(setting),
        }
    }

    fn take_rlimit(&mut self, setting: &Setting) -> Result<(), LxcConfigError> {
        let Some(limit) = setting.rlimit()? else {
            return setting.refuse(why_not_from_an_image(&setting.key));
        };
        if !security::is_rlimit(&limit.name) {
            return setting.refuse("there is no limit of that name (setrlimit(2), in lower case without RLIMIT_)");
        }
        self.rlimits.retain(|earlier| earlier.name != limit.name);
        self.rlimits.push(limit);
        Ok(())
    }
}

/// The settings of a file, in order. Comments and blank lines are gone, old names are new ones.
pub(super) fn settings(text: &str) -> Result<Vec<Setting>, LxcConfigError> {
    let mut found = Vec::new();
    // LXC ends a line at LF and at CR.
    let text = text.replace("\r\n", "\n");
    for (index, raw) in text.split(['\n', '\r']).enumerate() {
        let (line, text) = (index + 1, raw.trim());
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let Some((key, value)) = text.split_once('=').filter(|_| !text.contains('\0')) else {
            return Err(LxcConfigError::Syntax { line, text: text.to_owned() });
        };
        found.push((line, key.trim_end(), unquote(value.trim_start())));
    }
    let mut translator = Translator::of(found.iter().map(|&(_, key, value)| (key, value)));
    let translated = found.into_iter().filter_map(|(line, key, value)| {
        let (key, value) = translator.translate(key, value)?;
        Some(Setting { line, key, value })
    });
    Ok(translated.collect())
}

/// Takes one pair of matching quotes off a value.
fn unquote(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)))
        .unwrap_or(value)
}

/// Whether a setting asks for what every container has anyway. A number of terminals or ptys says how
/// many there may be at most, so any is met.
pub(super) fn is_settled(setting: &Setting) -> Result<bool, LxcConfigError> {
    match setting.key.as_str() {
        "lxc.autodev" => match setting.flag()? {
            true => Ok(true),
            false => setting.refuse("every container gets a fresh /dev").map(|()| true),
        },
        "lxc.console.path" if setting.value != "none" => setting.refuse("a batch job has no console").map(|()| true),
        "lxc.console.path" | "lxc.tty.max" | "lxc.pty.max" | "lxc.tty.dir" => Ok(true),
        _ => Ok(false),
    }
}

/// Whether an image asks for one of the kernel's filesystems where every container has it.
fn is_mounted_anyway(entry: &MountEntry) -> bool {
    let known = [("proc", "proc"), ("sysfs", "sys"), ("devpts", "dev/pts"), ("tmpfs", "dev/shm")];
    known.contains(&(entry.fstype.as_str(), entry.target.trim_matches('/')))
}

/// Keys and families of keys, and why an image may not set them.
const REFUSED: [(&[&str], &str); 9] = [
    (&["lxc.include"], "an image's config includes no other file"),
    (&["lxc.hook"], "an image runs nothing on the node"),
    (&["lxc.cgroup", "lxc.cgroup2"], "the job's limits are not the image's to set"),
    (&["lxc.rootfs", "lxc.mount"], "an image names no path of the node"),
    (&["lxc.net"], "the network is not the image's to choose"),
    (&["lxc.idmap", "lxc.namespace"], "an image chooses none of the node's users or namespaces"),
    (
        &["lxc.apparmor", "lxc.selinux", "lxc.seccomp", "lxc.keyring", "lxc.sysctl", "lxc.proc"],
        "what confines a container is not the image's to change",
    ),
    (&["lxc.uts"], "a container is called as its task"),
    (
        &["lxc.init", "lxc.execute", "lxc.signal"],
        "what runs, as whom, where and how it is stopped is the job's business",
    ),
];

fn why_not_from_an_image(key: &str) -> &'static str {
    let below = |family: &&str| key.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    REFUSED.iter().find(|(families, _)| families.iter().any(below)).map_or(
        "an image may set only lxc.environment, lxc.cap.drop, lxc.cap.keep, lxc.prlimit.* and tmpfs mounts",
        |(_, why)| why,
    )
}

/// Adds what the setting holds. As everywhere in LXC, an empty value forgets what was set so far.
pub(super) fn collect<T>(
    list: &mut Vec<T>,
    setting: &Setting,
    read: fn(&Setting) -> Result<T, LxcConfigError>,
) -> Result<(), LxcConfigError> {
    if setting.value.is_empty() {
        list.clear();
        return Ok(());
    }
    list.push(read(setting)?);
    Ok(())
}

pub(super) fn extend_words(list: &mut Vec<String>, setting: &Setting) {
    if setting.value.is_empty() {
        list.clear();
    }
    list.extend(setting.value.split_whitespace().map(str::to_owned));
}

/// In a list of what is kept, `none` forgets what stood before it.
pub(super) fn keep_words(list: &mut Vec<String>, setting: &Setting) {
    for word in setting.value.split_whitespace() {
        if word == "none" {
            list.clear();
        } else {
            list.push(word.to_owned());
        }
    }
}

impl Setting {
    pub(super) fn refuse(&self, why: &'static str) -> Result<(), LxcConfigError> {
        Err(LxcConfigError::Refused { line: self.line, key: self.key.clone(), why })
    }

    pub(super) fn bad(&self, wanted: &'static str) -> LxcConfigError {
        LxcConfigError::BadValue { line: self.line, key: self.key.clone(), value: self.value.clone(), wanted }
    }

    pub(super) fn flag(&self) -> Result<bool, LxcConfigError> {
        match self.value.as_str() {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(self.bad("0 or 1")),
        }
    }

    pub(super) fn environment(&self) -> Result<(String, String), LxcConfigError> {
        self.value
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .ok_or_else(|| self.bad("of the form NAME=value"))
    }

    pub(super) fn mount_entry(&self) -> Result<MountEntry, LxcConfigError> {
        let fields: Vec<String> = self.value.split_ascii_whitespace().map(wire::proc_text::unescape).collect();
        let [source, target, fstype, options, ..] = fields.as_slice() else {
            return Err(self.bad("of the form source target type options"));
        };
        Ok(MountEntry {
            source: source.clone(),
            target: target.clone(),
            fstype: fstype.clone(),
            options: options.split(',').map(str::to_owned).collect(),
        })
    }

    /// A mount entry that shows nothing of the node, with what keeps it harmless.
    fn tmpfs_entry(&self) -> Result<MountEntry, LxcConfigError> {
        const HARMLESS: [&str; 9] =
            ["rw", "ro", "nosuid", "nodev", "noexec", "noatime", "defaults", "optional", "create=dir"];
        const WITH_A_NUMBER: [&str; 6] = ["size", "nr_blocks", "nr_inodes", "mode", "uid", "gid"];
        let mut entry = self.mount_entry()?;
        let inside = !entry.target.split('/').any(|part| matches!(part, "" | "." | ".."));
        let harmless = |option: &String| {
            HARMLESS.contains(&option.as_str())
                || option.split_once('=').is_some_and(|(name, _)| WITH_A_NUMBER.contains(&name))
        };
        if entry.fstype != "tmpfs" || !inside || !entry.options.iter().all(harmless) {
            return Err(
                self.bad("a tmpfs below the container's root, such as \"tmpfs run tmpfs size=1m,mode=755 0 0\"")
            );
        }
        let top = entry.target.split('/').next().unwrap_or_default();
        if ["proc", "sys", "dev", "workspace"].contains(&top) {
            return Err(self.bad("a tmpfs outside of /proc, /sys, /dev and /workspace, which berth mounts"));
        }
        for needed in ["nosuid", "nodev"] {
            if !entry.options.iter().any(|option| option == needed) {
                entry.options.push(needed.to_owned());
            }
        }
        Ok(entry)
    }

    /// Every word must be a capability's name: one that is misspelled would be kept without a word.
    fn capabilities(&self) -> Result<(), LxcConfigError> {
        let known =
            |word: &str| word == "none" && self.key == "lxc.cap.keep" || security::capability_named(word).is_some();
        match self.value.split_whitespace().all(known) {
            true => Ok(()),
            false => Err(self.bad("a list of capabilities, lower case without cap_, such as \"sys_chroot kill\"")),
        }
    }

    /// The limit, if the key is one's.
    pub(super) fn rlimit(&self) -> Result<Option<Rlimit>, LxcConfigError> {
        let Some(name) = self.key.strip_prefix("lxc.prlimit.") else { return Ok(None) };
        let bad = || self.bad("a number, unlimited, or two of them as soft:hard");
        let number = |text: &str| match text {
            "unlimited" => Ok(None),
            digits => digits.parse().map(Some).map_err(|_| bad()),
        };
        let (soft, hard) = self.value.split_once(':').unwrap_or((&self.value, &self.value));
        Ok(Some(Rlimit { name: name.to_owned(), soft: number(soft)?, hard: number(hard)? }))
    }
}
