//! The typed config as text that LXC 3 to 6 reads as the same. A value that cannot be is refused, never bent.

use std::fmt::Write as _;
use std::path::Path;

use super::{ContainerConfig, LxcConfigError, MountEntry, Network, Rlimit, Rootfs, command};

type Written = Result<(), LxcConfigError>;

impl ContainerConfig {
    /// The file's text. Fails where a value cannot be written so that LXC would read the same.
    pub fn to_lxc(&self) -> Result<String, LxcConfigError> {
        let mut out = Lines { text: String::new() };
        out.line("lxc.uts.name", &self.uts_name)?;
        out.line("lxc.rootfs.path", &rootfs_value(&self.rootfs)?)?;
        out.list("lxc.rootfs.options", &self.rootfs.options, ",")?;
        for mount in &self.mounts {
            out.line("lxc.mount.entry", &mount_value(mount)?)?;
        }
        out.words("lxc.mount.auto", &self.mount_auto)?;
        self.write_devices(&mut out)?;
        self.write_privileges(&mut out)?;
        self.write_limits(&mut out)?;
        self.write_process(&mut out)?;
        Ok(out.text)
    }

    /// A fresh /dev with a pts of its own, no console and no login terminals: what berth makes itself.
    fn write_devices(&self, out: &mut Lines) -> Written {
        out.line("lxc.autodev", "1")?;
        out.line("lxc.console.path", "none")?;
        out.line("lxc.tty.max", "0")?;
        out.line("lxc.pty.max", "1024")?;
        out.line("lxc.net.0.type", self.network.as_str())?;
        match self.network {
            Network::None => out.line("lxc.net.0.flags", "up"),
            Network::Host => Ok(()),
        }
    }

    fn write_privileges(&self, out: &mut Lines) -> Written {
        if self.cap_keep.is_empty() {
            // An empty value would mean: keep all.
            out.line("lxc.cap.keep", "none")?;
        }
        out.words("lxc.cap.keep", &self.cap_keep)?;
        out.line("lxc.no_new_privs", if self.no_new_privs { "1" } else { "0" })?;
        match &self.seccomp_profile {
            Some(profile) => out.line("lxc.seccomp.profile", path_text("lxc.seccomp.profile", profile)?),
            None => Ok(()),
        }
    }

    fn write_limits(&self, out: &mut Lines) -> Written {
        for limit in &self.rlimits {
            out.line(&format!("lxc.prlimit.{}", limit.name), &rlimit_value(limit))?;
        }
        out.line("lxc.proc.oom_score_adj", &self.oom_score_adj.to_string())?;
        for setting in &self.cgroup {
            out.line(&format!("{}{}", setting.version.prefix(), setting.key), &setting.value)?;
        }
        Ok(())
    }

    fn write_process(&self, out: &mut Lines) -> Written {
        for (name, value) in &self.environment {
            let setting = format!("{name}={value}");
            if name.is_empty() || name.contains('=') {
                return unwritable("lxc.environment", &setting, "has an empty name or one with a = in it");
            }
            out.line("lxc.environment", &setting)?;
        }
        out.line("lxc.init.cwd", &self.init_cwd)?;
        out.line("lxc.execute.cmd", &command::encode(&self.command_line))
    }
}

/// The text so far.
struct Lines {
    text: String,
}

impl Lines {
    /// `key = value`, with nothing in either that could end the line or be taken off its ends.
    fn line(&mut self, key: &str, value: &str) -> Written {
        if !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return unwritable(key, value, "has a key of more than letters, digits and . _ -");
        }
        if value.is_empty() {
            return unwritable(key, value, "is empty, which LXC takes for \"forget what was set\"");
        }
        if value.contains(char::is_control) {
            return unwritable(key, value, "holds a control character, which a line of LXC config cannot");
        }
        let bare = value.trim() == value && !value.starts_with(['"', '\'']);
        let quote = if bare { "" } else { "\"" };
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{key} = {quote}{value}{quote}");
        Ok(())
    }

    /// One line with all the words, if there are any.
    fn words(&mut self, key: &str, words: &[String]) -> Written {
        self.list(key, words, " ")
    }

    /// [`Lines::words`] with something else between them.
    fn list(&mut self, key: &str, words: &[String], between: &str) -> Written {
        let split = |word: &String| word.is_empty() || word.contains(char::is_whitespace) || word.contains(between);
        if let Some(bad) = words.iter().find(|word| split(word)) {
            return unwritable(key, bad, "is not one word");
        }
        if words.is_empty() { Ok(()) } else { self.line(key, &words.join(between)) }
    }
}

/// `overlay:<lower>...:<upper>`, top layer first.
fn rootfs_value(rootfs: &Rootfs) -> Result<String, LxcConfigError> {
    const KEY: &str = "lxc.rootfs.path";
    if rootfs.lowerdirs.is_empty() {
        unwritable(KEY, "", "has no layer")?;
    }
    let mut value = rootfs.driver.as_str().to_owned();
    for path in rootfs.lowerdirs.iter().chain([&rootfs.upperdir]) {
        let text = path_text(KEY, path)?;
        if !text.starts_with('/') || text.contains([':', ',', '\\']) {
            // LXC splits at ":/" and hands the rest to mount(2) as it is.
            unwritable(KEY, text, "is not absolute, or holds a colon, comma or backslash")?;
        }
        value.push(':');
        value.push_str(text);
    }
    Ok(value)
}

/// One line of fstab(5).
fn mount_value(mount: &MountEntry) -> Result<String, LxcConfigError> {
    const KEY: &str = "lxc.mount.entry";
    let options = mount.options.join(",");
    let fields = [&mount.source, &mount.target, &mount.fstype, &options];
    if fields.iter().any(|field| field.is_empty()) {
        unwritable(KEY, &fields.map(String::as_str).join(" "), "has an empty field")?;
    }
    if mount.options.iter().any(|option| option.is_empty() || option.contains(',')) {
        unwritable(KEY, &options, "has an empty option or one with a comma")?;
    }
    if mount.source.starts_with('#') {
        unwritable(KEY, &mount.source, "begins a comment")?;
    }
    if mount.target.split('/').any(|part| part == ".." || part.is_empty()) {
        unwritable(KEY, &mount.target, "is not a plain path relative to the root")?;
    }
    Ok(format!("{} 0 0", fields.map(|field| escape_fstab(field)).join(" ")))
}

/// The octal escapes that getmntent(3) undoes; the backslash first, since the others bring new ones.
fn escape_fstab(field: &str) -> String {
    field.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

/// `soft:hard`.
fn rlimit_value(limit: &Rlimit) -> String {
    let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    format!("{}:{}", text(limit.soft), text(limit.hard))
}

fn path_text<'a>(key: &str, path: &'a Path) -> Result<&'a str, LxcConfigError> {
    path.to_str().ok_or_else(|| LxcConfigError::Unwritable {
        key: key.to_owned(),
        value: path.display().to_string(),
        why: "is not UTF-8",
    })
}

fn unwritable(key: &str, value: &str, why: &'static str) -> Written {
    Err(LxcConfigError::Unwritable { key: key.to_owned(), value: value.to_owned(), why })
}
