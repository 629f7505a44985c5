//! The container's config in LXC's syntax: the typed value, its writer and its reader.
//!
//! The supervisor builds one [`ContainerConfig`], writes it to `cont/<id>/config` and applies the same
//! value; stock `lxc-execute` (LXC 4 to 6) must take the file and run the same command under the same
//! limits. This room is text only: it mounts nothing, opens nothing, and asks the kernel nothing.
//!
//! Source: lxc.container.conf(5), and `confile.c` of LXC 5.0.2 for what the page leaves open. There a
//! line ends at LF *or CR*, `#` is a comment only at the beginning of a line, and one pair of matching
//! quotes around a whole value is taken off. Nothing here escapes a newline, so a text with one is either
//! refused or, for the command line, spelled another way: no user text can add a line.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Everything that makes one container, in LXC's own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerConfig {
    /// `lxc.uts.name`: the hostname inside.
    pub uts_name: String,
    /// `lxc.rootfs.path`.
    pub rootfs: Rootfs,
    /// `lxc.mount.entry`, in the order they are mounted.
    pub mounts: Vec<MountEntry>,
    /// `lxc.mount.auto`: `proc:mixed`, `sys:ro`, ...
    pub mount_auto: Vec<String>,
    /// `lxc.net.0.type`.
    pub network: Network,
    /// `lxc.cap.keep`, lower case without `cap_`. Empty keeps none.
    pub cap_keep: Vec<String>,
    /// `lxc.no_new_privs`.
    pub no_new_privs: bool,
    /// `lxc.prlimit.*`.
    pub rlimits: Vec<Rlimit>,
    /// `lxc.cgroup.*` and `lxc.cgroup2.*`, in the order they must be written.
    pub cgroup: Vec<CgroupSetting>,
    /// `lxc.environment`, in order; a later name wins.
    pub environment: Vec<(String, String)>,
    /// `lxc.init.cwd`: the working directory of the command, absolute, inside.
    pub init_cwd: String,
    /// `lxc.execute.cmd`: what the image's `/bin/sh -c` runs. Any text without NUL.
    pub command_line: String,
    /// `lxc.seccomp.profile`, a file in LXC's own policy format.
    pub seccomp_profile: Option<PathBuf>,
}

/// The union that becomes `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Which union filesystem.
    pub driver: UnionDriver,
    /// The read-only layers, top first; at least one.
    pub lowerdirs: Vec<PathBuf>,
    /// The writable layer.
    pub upperdir: PathBuf,
}

/// A union filesystem, as `lxc.rootfs.path` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnionDriver {
    /// overlayfs, in the kernel since 3.18.
    Overlay,
    /// AUFS, where the kernel is patched with it. LXC itself knew it up to 2.1 only.
    Aufs,
}

/// One line of `lxc.mount.entry`, which is one line of fstab(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// What is mounted: a path on the host, or the filesystem's name.
    pub source: String,
    /// Where, relative to the root of the container.
    pub target: String,
    /// Its type; `none` for a bind mount.
    pub fstype: String,
    /// Its options; at least one (`defaults`).
    pub options: Vec<String>,
}

/// What the container sees of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// Its own network namespace with nothing but `lo`.
    #[default]
    None,
    /// The host's network.
    Host,
}

/// A resource limit, as setrlimit(2) knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// Lower case without `RLIMIT_`: `nofile`.
    pub name: String,
    /// In force; `None` is unlimited.
    pub soft: Option<u64>,
    /// What soft may be raised to; `None` is unlimited.
    pub hard: Option<u64>,
}

/// Which hierarchy a cgroup file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CgroupVersion {
    /// `lxc.cgroup.*`, one hierarchy a controller.
    V1,
    /// `lxc.cgroup2.*`, the unified hierarchy.
    V2,
}

/// One value written into one file of the container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupSetting {
    /// The hierarchy.
    pub version: CgroupVersion,
    /// The file: `memory.limit_in_bytes`.
    pub key: String,
    /// What is written.
    pub value: String,
}

/// What an image's own `config` adds to every container made from it. It can only add to the environment
/// and take rights away; see [`ContainerConfig::apply_image`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `lxc.environment`, before the task's own.
    pub environment: Vec<(String, String)>,
    /// `lxc.cap.drop`: taken from what is kept.
    pub cap_drop: Vec<String>,
    /// `lxc.cap.keep`: nothing else is kept.
    pub cap_keep: Option<Vec<String>>,
    /// `lxc.prlimit.*`: in place of the default of that name.
    pub rlimits: Vec<Rlimit>,
    /// `lxc.mount.entry` of kernel filesystems that show nothing of the host (tmpfs).
    pub mounts: Vec<MountEntry>,
}

/// Why a config cannot be written or read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LxcConfigError {
    /// The value would not read back as itself.
    #[error("cannot write {key}: {value:?} {why}")]
    Unwritable {
        /// The key.
        key: String,
        /// What should have been its value.
        value: String,
        /// What is in the way.
        why: &'static str,
    },
}

/// `NAME = value` without anything that could end the line or be taken off its ends.
struct Writer {
    text: String,
}

impl Writer {
    fn line(&mut self, key: &str, value: &str) -> Result<(), LxcConfigError> {
        let refuse = |why| Err(LxcConfigError::Unwritable { key: key.to_owned(), value: value.to_owned(), why });
        if value.chars().any(char::is_control) {
            return refuse("holds a control character, which a line of LXC config cannot");
        }
        let quote = match value.trim_matches(is_blank) == value && !value.starts_with(['"', '\'']) {
            true => "",
            false => "\"",
        };
        // Infallible: writing to a String.
        let _ = writeln!(self.text, "{key} = {quote}{value}{quote}");
        Ok(())
    }
}

/// What LXC takes off both ends of a value.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

impl ContainerConfig {
    /// Takes in what the image brought along.
    pub fn apply_image(&mut self, image: &ImageConfig) {
        self.environment.splice(0..0, image.environment.iter().cloned());
        self.cap_keep.retain(|cap| !image.cap_drop.contains(cap));
        if let Some(keep) = &image.cap_keep {
            self.cap_keep.retain(|cap| keep.contains(cap));
        }
        self.rlimits.retain(|ours| image.rlimits.iter().all(|theirs| theirs.name != ours.name));
        self.rlimits.extend(image.rlimits.iter().cloned());
        self.mounts.extend(image.mounts.iter().cloned());
    }

    /// The file's text. Fails where a value cannot be written so that LXC would read the same.
    pub fn to_lxc(&self) -> Result<String, LxcConfigError> {
        let mut out = Writer { text: String::new() };
        out.line("lxc.uts.name", &self.uts_name)?;
        out.line("lxc.rootfs.path", &self.rootfs.to_value()?)?;
        for mount in &self.mounts {
            out.line("lxc.mount.entry", &mount.to_value()?)?;
        }
        if !self.mount_auto.is_empty() {
            out.line("lxc.mount.auto", &self.mount_auto.join(" "))?;
        }
        self.write_devices(&mut out)?;
        self.write_privileges(&mut out)?;
        self.write_limits(&mut out)?;
        self.write_process(&mut out)?;
        Ok(out.text)
    }

    /// A fresh /dev with a pts of its own, no console and no login terminals: what berth makes itself.
    fn write_devices(&self, out: &mut Writer) -> Result<(), LxcConfigError> {
        out.line("lxc.autodev", "1")?;
        out.line("lxc.console.path", "none")?;
        out.line("lxc.tty.max", "0")?;
        out.line("lxc.pty.max", "1024")?;
        out.line("lxc.net.0.type", self.network.as_str())
    }

    fn write_privileges(&self, out: &mut Writer) -> Result<(), LxcConfigError> {
        let keep = if self.cap_keep.is_empty() { "none".to_owned() } else { self.cap_keep.join(" ") };
        out.line("lxc.cap.keep", &keep)?;
        out.line("lxc.no_new_privs", if self.no_new_privs { "1" } else { "0" })?;
        match &self.seccomp_profile {
            Some(profile) => out.line("lxc.seccomp.profile", path_text("lxc.seccomp.profile", profile)?),
            None => Ok(()),
        }
    }

    fn write_limits(&self, out: &mut Writer) -> Result<(), LxcConfigError> {
        for limit in &self.rlimits {
            out.line(&format!("lxc.prlimit.{}", limit.name), &limit.to_value())?;
        }
        for setting in &self.cgroup {
            out.line(&format!("{}.{}", setting.version.prefix(), setting.key), &setting.value)?;
        }
        Ok(())
    }

    fn write_process(&self, out: &mut Writer) -> Result<(), LxcConfigError> {
        for (name, value) in &self.environment {
            out.line("lxc.environment", &format!("{name}={value}"))?;
        }
        out.line("lxc.init.cwd", &self.init_cwd)?;
        out.line("lxc.execute.cmd", &execute_cmd(&self.command_line))
    }
}

impl Rootfs {
    /// `overlay:<lower>...:<upper>`, top layer first.
    fn to_value(&self) -> Result<String, LxcConfigError> {
        let mut value = self.driver.as_str().to_owned();
        for path in self.lowerdirs.iter().chain([&self.upperdir]) {
            let text = path_text("lxc.rootfs.path", path)?;
            if text.contains([':', ',', '\\']) {
                let why = "holds a colon, comma or backslash, which separate layers and mount options";
                return Err(LxcConfigError::Unwritable { key: "lxc.rootfs.path".into(), value: text.into(), why });
            }
            value.push(':');
            value.push_str(text);
        }
        Ok(value)
    }
}

impl MountEntry {
    fn to_value(&self) -> Result<String, LxcConfigError> {
        let fields = [&self.source, &self.target, &self.fstype, &self.options.join(",")].map(|f| escape_fstab(f));
        Ok(format!("{} 0 0", fields.join(" ")))
    }
}

impl Rlimit {
    fn to_value(&self) -> String {
        let text = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
        format!("{}:{}", text(self.soft), text(self.hard))
    }
}

impl Network {
    const fn as_str(self) -> &'static str {
        match self {
            Network::None => "empty",
            Network::Host => "none",
        }
    }
}

impl UnionDriver {
    /// As `lxc.rootfs.path` begins, and as /proc/filesystems lists it.
    pub const fn as_str(self) -> &'static str {
        match self {
            UnionDriver::Overlay => "overlay",
            UnionDriver::Aufs => "aufs",
        }
    }
}

impl CgroupVersion {
    const fn prefix(self) -> &'static str {
        match self {
            CgroupVersion::V1 => "lxc.cgroup",
            CgroupVersion::V2 => "lxc.cgroup2",
        }
    }
}

fn path_text<'a>(key: &str, path: &'a Path) -> Result<&'a str, LxcConfigError> {
    path.to_str().ok_or_else(|| LxcConfigError::Unwritable {
        key: key.to_owned(),
        value: path.display().to_string(),
        why: "is not UTF-8",
    })
}

/// fstab(5)'s octal escapes, as getmntent(3) undoes them.
fn escape_fstab(field: &str) -> String {
    field.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

/// `/bin/sh -c "<command>"` where LXC's splitter (blanks separate, one kind of quotes encloses, nothing
/// escapes) can carry the text; else the same shell, handed the text by printf(1)'s octal escapes.
fn execute_cmd(command: &str) -> String {
    let plain = !command.chars().any(char::is_control);
    match (plain, command.contains('"'), command.contains('\'')) {
        (true, false, _) => format!("/bin/sh -c \"{command}\""),
        (true, true, false) => format!("/bin/sh -c '{command}'"),
        _ => format!("{ENCODED_HEAD}{}{ENCODED_TAIL}", escape_printf(command)),
    }
}

// The dot keeps trailing newlines from command substitution.
const ENCODED_HEAD: &str = "/bin/sh -c 'c=$(printf %b. \"";
const ENCODED_TAIL: &str = "\"); exec /bin/sh -c \"${c%.}\"'";

/// Everything the double quotes of a shell, the single quotes of LXC or a line could trip over, as `\0ooo`.
fn escape_printf(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_ascii_control() || matches!(c, '"' | '\'' | '\\' | '$' | '`' | '!') {
            // Infallible: writing to a String.
            let _ = write!(out, "\\0{:03o}", u32::from(c));
        } else {
            out.push(c);
        }
        out
    })
}
