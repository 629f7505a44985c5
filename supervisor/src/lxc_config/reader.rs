//! LXC config as it is read: the little an image may bring.
//!
//! The names of LXC 1 and 2 (`lxc.utsname`, `lxc.tty`, `lxc.network.type`...) are understood as
//! lxc-update-config(1) translates them. Nothing unknown is skipped: a key that cannot be applied is refused by name.

use super::{ImageConfig, LxcConfigError, MountEntry, Rlimit};

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
                extend_words(&mut self.cap_drop, setting);
                Ok(())
            }
            "lxc.cap.keep" if setting.value.is_empty() => {
                self.cap_keep = None;
                Ok(())
            }
            "lxc.cap.keep" => {
                keep_words(self.cap_keep.get_or_insert_default(), setting);
                Ok(())
            }
            "lxc.no_new_privs" => match setting.flag()? {
                true => Ok(()),
                false => setting.refuse("berth never lets a command gain privileges"),
            },
            "lxc.mount.entry" => collect(&mut self.mounts, setting, Setting::tmpfs_entry),
            _ => self.take_rlimit(setting),
        }
    }

    fn take_rlimit(&mut self, setting: &Setting) -> Result<(), LxcConfigError> {
        let Some(limit) = setting.rlimit()? else {
            return setting.refuse(why_not_from_an_image(&setting.key));
        };
        self.rlimits.retain(|earlier| earlier.name != limit.name);
        self.rlimits.push(limit);
        Ok(())
    }
}

/// The settings of a file, in order. Comments and blank lines are gone, old names are new ones.
pub(super) fn settings(text: &str) -> Result<Vec<Setting>, LxcConfigError> {
    let mut networks = LegacyNetworks::default();
    let mut found = Vec::new();
    // LXC ends a line at LF and at CR.
    for (index, raw) in text.replace("\r\n", "\n").split(['\n', '\r']).enumerate() {
        let (line, text) = (index + 1, raw.trim());
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let Some((key, value)) = text.split_once('=').filter(|_| !text.contains('\0')) else {
            return Err(LxcConfigError::Syntax { line, text: text.to_owned() });
        };
        let key = modern_key(key.trim_end(), &mut networks);
        found.push(Setting { line, key, value: unquote(value.trim_start()).to_owned() });
    }
    Ok(found)
}

/// Takes one pair of matching quotes off a value.
fn unquote(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)))
        .unwrap_or(value)
}

/// LXC 1 and 2 counted networks by their `type` lines; later ones write the number into the key.
#[derive(Default)]
struct LegacyNetworks {
    seen: usize,
}

/// The name that LXC 2.1 and later give a key, after the table in lxc-update-config(1).
fn modern_key(key: &str, networks: &mut LegacyNetworks) -> String {
    const RENAMED: [(&str, &str); 22] = [
        ("lxc.aa_allow_incomplete", "lxc.apparmor.allow_incomplete"),
        ("lxc.aa_profile", "lxc.apparmor.profile"),
        ("lxc.console", "lxc.console.path"),
        ("lxc.devttydir", "lxc.tty.dir"),
        ("lxc.haltsignal", "lxc.signal.halt"),
        ("lxc.id_map", "lxc.idmap"),
        ("lxc.init_cmd", "lxc.init.cmd"),
        ("lxc.init_gid", "lxc.init.gid"),
        ("lxc.init_uid", "lxc.init.uid"),
        ("lxc.logfile", "lxc.log.file"),
        ("lxc.loglevel", "lxc.log.level"),
        ("lxc.mount", "lxc.mount.fstab"),
        ("lxc.pts", "lxc.pty.max"),
        ("lxc.rebootsignal", "lxc.signal.reboot"),
        ("lxc.rootfs", "lxc.rootfs.path"),
        ("lxc.se_context", "lxc.selinux.context"),
        ("lxc.seccomp", "lxc.seccomp.profile"),
        ("lxc.stopsignal", "lxc.signal.stop"),
        ("lxc.syslog", "lxc.log.syslog"),
        ("lxc.tty", "lxc.tty.max"),
        ("lxc.utsname", "lxc.uts.name"),
        ("lxc.network", "lxc.net"),
    ];
    if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == key) {
        return (*new).to_owned();
    }
    if let Some(name) = key.strip_prefix("lxc.limit.") {
        return format!("lxc.prlimit.{name}");
    }
    match key.strip_prefix("lxc.network.") {
        Some(rest) => modern_network_key(rest, networks),
        None => key.to_owned(),
    }
}

fn modern_network_key(rest: &str, networks: &mut LegacyNetworks) -> String {
    if rest.starts_with(|c: char| c.is_ascii_digit()) {
        return format!("lxc.net.{rest}");
    }
    if rest == "type" {
        networks.seen += 1;
    }
    let index = networks.seen.saturating_sub(1);
    let suffix = if matches!(rest, "ipv4" | "ipv6") { ".address" } else { "" };
    format!("lxc.net.{index}.{rest}{suffix}")
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

fn why_not_from_an_image(key: &str) -> &'static str {
    let below = |family: &str| key.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if below("lxc.include") {
        "an image's config includes no other file"
    } else if below("lxc.hook") {
        "an image runs nothing on the node"
    } else if below("lxc.cgroup") || below("lxc.cgroup2") {
        "the job's limits are not the image's to set"
    } else if below("lxc.rootfs") || below("lxc.mount") {
        "an image names no path of the node"
    } else if below("lxc.net") {
        "the network is not the image's to choose"
    } else {
        "an image may set only lxc.environment, lxc.cap.drop, lxc.cap.keep, lxc.prlimit.* and tmpfs mounts"
    }
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
        let fields: Vec<String> = self.value.split_ascii_whitespace().map(unescape_fstab).collect();
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

    /// A mount entry that shows nothing of the node.
    fn tmpfs_entry(&self) -> Result<MountEntry, LxcConfigError> {
        let entry = self.mount_entry()?;
        let inside = !entry.target.split('/').any(|part| matches!(part, "" | "." | ".."));
        if entry.fstype != "tmpfs" || !inside || entry.options.iter().any(|option| option.contains("bind")) {
            return Err(
                self.bad("a tmpfs below the container's root, such as \"tmpfs run tmpfs size=1m,mode=755 0 0\"")
            );
        }
        Ok(entry)
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

/// Undoes fstab(5)'s octal escapes, as getmntent(3) does.
fn unescape_fstab(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
