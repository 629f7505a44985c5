//! A container's whole config, read back: the tests' oracle that what is written means what was meant.

use std::path::PathBuf;

use super::command::{ENCODED_HEAD, ENCODED_TAIL, SHELL};
use super::reader::{Setting, collect, extend_words, is_settled, keep_words, settings};
use super::{
    CgroupSetting, CgroupVersion, ContainerConfig, LxcConfigError, MountEntry, Network, Rlimit, Rootfs, UnionDriver,
};

impl ContainerConfig {
    /// Reads what [`ContainerConfig::to_lxc`] wrote.
    pub fn from_lxc(text: &str) -> Result<ContainerConfig, LxcConfigError> {
        let mut draft = Draft::default();
        for setting in settings(text)? {
            draft.take(&setting)?;
        }
        draft.finish()
    }
}

/// A container's config while it is read.
#[derive(Default)]
struct Draft {
    uts_name: Option<String>,
    rootfs: Option<Rootfs>,
    rootfs_options: Vec<String>,
    mounts: Vec<MountEntry>,
    mount_auto: Vec<String>,
    network: Network,
    cap_keep: Vec<String>,
    no_new_privs: bool,
    rlimits: Vec<Rlimit>,
    oom_score_adj: i16,
    cgroup: Vec<CgroupSetting>,
    environment: Vec<(String, String)>,
    init_cwd: Option<String>,
    command_line: Option<String>,
    seccomp_profile: Option<PathBuf>,
}

impl Draft {
    fn take(&mut self, setting: &Setting) -> Result<(), LxcConfigError> {
        if is_settled(setting)? {
            return Ok(());
        }
        match setting.key.as_str() {
            "lxc.uts.name" => self.uts_name = Some(setting.value.clone()),
            "lxc.rootfs.path" => self.rootfs = Some(setting.rootfs()?),
            "lxc.rootfs.options" => self.rootfs_options = setting.value.split(',').map(str::to_owned).collect(),
            "lxc.mount.entry" => collect(&mut self.mounts, setting, Setting::mount_entry)?,
            "lxc.mount.auto" => extend_words(&mut self.mount_auto, setting),
            "lxc.net.0.type" => self.network = setting.network()?,
            "lxc.net.0.flags" if setting.value == "up" => {}
            "lxc.cap.keep" => keep_words(&mut self.cap_keep, setting),
            "lxc.no_new_privs" => self.no_new_privs = setting.flag()?,
            "lxc.proc.oom_score_adj" => self.oom_score_adj = setting.oom_score_adj()?,
            "lxc.environment" => collect(&mut self.environment, setting, Setting::environment)?,
            "lxc.init.cwd" => self.init_cwd = Some(setting.value.clone()),
            "lxc.execute.cmd" => self.command_line = Some(setting.command_line()?),
            "lxc.seccomp.profile" => self.seccomp_profile = Some(PathBuf::from(&setting.value)),
            _ => self.take_limit(setting)?,
        }
        Ok(())
    }

    fn take_limit(&mut self, setting: &Setting) -> Result<(), LxcConfigError> {
        match (setting.rlimit()?, setting.cgroup()) {
            (Some(limit), _) => self.rlimits.push(limit),
            (None, Some(cgroup)) => self.cgroup.push(cgroup),
            (None, None) => setting.refuse("it is not a key berth writes")?,
        }
        Ok(())
    }

    fn finish(self) -> Result<ContainerConfig, LxcConfigError> {
        let rootfs = self.rootfs.ok_or_else(|| missing("lxc.rootfs.path"))?;
        Ok(ContainerConfig {
            uts_name: self.uts_name.ok_or_else(|| missing("lxc.uts.name"))?,
            rootfs: Rootfs { options: self.rootfs_options, ..rootfs },
            mounts: self.mounts,
            mount_auto: self.mount_auto,
            network: self.network,
            cap_keep: self.cap_keep,
            no_new_privs: self.no_new_privs,
            rlimits: self.rlimits,
            oom_score_adj: self.oom_score_adj,
            cgroup: self.cgroup,
            environment: self.environment,
            init_cwd: self.init_cwd.ok_or_else(|| missing("lxc.init.cwd"))?,
            command_line: self.command_line.ok_or_else(|| missing("lxc.execute.cmd"))?,
            seccomp_profile: self.seccomp_profile,
        })
    }
}

fn missing(key: &str) -> LxcConfigError {
    LxcConfigError::Refused { line: 0, key: key.to_owned(), why: "it is not there" }
}

impl Setting {
    fn network(&self) -> Result<Network, LxcConfigError> {
        [Network::None, Network::Host]
            .into_iter()
            .find(|network| network.as_str() == self.value)
            .ok_or_else(|| self.bad("empty (only lo) or none (the host's)"))
    }

    fn oom_score_adj(&self) -> Result<i16, LxcConfigError> {
        self.value.parse().map_err(|_| self.bad("a number from -1000 to 1000"))
    }

    fn command_line(&self) -> Result<String, LxcConfigError> {
        decode(&self.value).ok_or_else(|| self.bad("/bin/sh -c and one word in quotes"))
    }

    fn rootfs(&self) -> Result<Rootfs, LxcConfigError> {
        let bad = || self.bad("overlay:<lower>...:<upper> or aufs:<lower>...:<upper>");
        let (driver, layers) = self.value.split_once(':').ok_or_else(bad)?;
        let driver = match driver {
            "overlay" | "overlayfs" => UnionDriver::Overlay,
            "aufs" => UnionDriver::Aufs,
            _ => return Err(bad()),
        };
        let mut lowerdirs: Vec<PathBuf> = layers.split(':').map(PathBuf::from).collect();
        let upperdir = lowerdirs.pop().filter(|_| !lowerdirs.is_empty()).ok_or_else(bad)?;
        Ok(Rootfs { driver, lowerdirs, upperdir, options: Vec::new() })
    }

    fn cgroup(&self) -> Option<CgroupSetting> {
        [CgroupVersion::V1, CgroupVersion::V2].into_iter().find_map(|version| {
            let key = self.key.strip_prefix(version.prefix())?.to_owned();
            Some(CgroupSetting { version, key, value: self.value.clone() })
        })
    }
}

/// The command line in a value that `encode` made.
pub(super) fn decode(value: &str) -> Option<String> {
    let word = value.strip_prefix(SHELL)?;
    let quote = word.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let word = word.strip_prefix(quote)?.strip_suffix(quote).filter(|inner| !inner.contains(quote))?;
    match word.strip_prefix(ENCODED_HEAD) {
        Some(rest) => unescape(rest.strip_suffix(ENCODED_TAIL)?),
        None => Some(word.to_owned()),
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let (byte, len) = match after.strip_prefix('0') {
            Some(digits) => (u8::from_str_radix(digits.get(..3)?, 8).ok()?, 4),
            None => (after.strip_prefix('n').map(|_| b'\n')?, 1),
        };
        bytes.push(byte);
        rest = &after[len..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}
