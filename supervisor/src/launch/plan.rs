//! The plan: everything that can be made before the clone, where an error is still easy to report.
//!
//! Container folder, end record, the container's config, the command's arguments and environment. Init walks it; nothing
//! in it is changed after the clone. What only init can make stays init's: the layers are opened in its own mount
//! namespace, and the config's text names the packages that it finds.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wire::fault::Point;
use wire::{BootId, JobSpec};

use super::record::RecordFile;
use super::step::{Step, StepError};
use super::{LaunchRequest, Launcher, Logs, Network};
use crate::cgroup::Layout;
use crate::fault;
use crate::images::{self, Image};
use crate::lease;
use crate::lxc_config::{ContainerConfig, Rootfs};
use crate::rootfs;
use crate::security::{self, SystemCallFilter};

/// Where commands are found, as Debian's login(1) sets it for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that init needs.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Name of the container, its cgroup and its host.
    pub container: String,
    /// The container's folder.
    pub folder: PathBuf,
    /// The config that is applied, and written.
    pub config: ContainerConfig,
    /// Where the image's layers are.
    pub image_dir: PathBuf,
    /// What runs.
    pub spec: &'a JobSpec,
    /// `/bin/sh -c <command line>`, as execve(2) wants it.
    pub arguments: Vec<CString>,
    /// The command's environment, as execve(2) wants it.
    pub environment: Vec<CString>,
    /// Folders packages may come from.
    pub package_roots: Vec<PathBuf>,
    /// The container's cgroups as it sees them: the place below /sys/fs/cgroup, and the folder shown there.
    pub cgroups: Vec<(String, PathBuf)>,
    /// The end record, open and locked.
    pub record: RecordFile,
    /// The folders our cgroups are made in.
    pub layout: &'a Layout,
    /// The compiled system-call filter.
    pub filter: &'a SystemCallFilter,
    /// This boot.
    pub boot_id: &'a BootId,
    /// Where output goes.
    pub logs: Logs,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// What each log may hold.
    pub log_limit_bytes: u64,
    /// From the start of the command; `None`: no limit.
    pub timeout: Option<Duration>,
    /// End with the launching process.
    pub die_with_parent: bool,
    /// The lease the task runs under, if it does.
    pub lease: Option<lease::Watched>,
}

impl<'a> Plan<'a> {
    /// Makes the plan; on failure nothing is left of it.
    pub fn make(launcher: &'a Launcher, layout: &'a Layout, request: LaunchRequest<'a>) -> Result<Plan<'a>, StepError> {
        let settings = &launcher.settings;
        let image = open_image(&settings.image_dir(), request.spec)?;
        let folder = settings.container_dir(request.container);
        let config = container_config(launcher, layout, &request, &image);
        let lease = request.lease.as_ref().map(|terms| lease::Watched::open(terms, &launcher.boot_id));
        let lease = lease.transpose().step(|| "open the lease".to_owned())?;
        let arguments = c_strings(["sh", "-c", &request.spec.command_line].into_iter().map(str::to_owned))?;
        let environment = environment(&config)?;
        fault::call(Point::LaunchFolder)
            .and_then(|()| std::fs::create_dir(&folder))
            .step(|| format!("make folder {}", folder.display()))?;
        fault::moment(Point::LaunchFolderMade);
        let record = RecordFile::make(&folder).step(|| "reserve the end record".to_owned()).inspect_err(|_| {
            // Best effort: what stays is swept at the next start.
            let _ = std::fs::remove_dir_all(&folder);
        })?;
        Ok(Plan {
            container: request.container.to_owned(),
            folder,
            config,
            image_dir: settings.image_dir(),
            spec: request.spec,
            arguments,
            environment,
            package_roots: settings.package_roots.clone(),
            cgroups: layout.views(request.container),
            record,
            layout,
            filter: &launcher.filter,
            boot_id: &launcher.boot_id,
            logs: request.logs,
            grace: request.grace,
            log_limit_bytes: settings.log_limit_bytes,
            timeout: (request.spec.timeout > 0).then(|| Duration::from_millis(request.spec.timeout)),
            die_with_parent: request.die_with_parent,
            lease,
        })
    }

    /// Takes back what [`Plan::make`] made.
    pub fn undo(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            log::warn!("cannot remove {}: {error}", self.folder.display());
        }
    }

    /// What the container sees of the network.
    pub fn network(&self) -> Network {
        self.config.network
    }

    /// The descriptors init keeps; all others are the supervisor's business.
    pub fn descriptors<'p>(&'p self, line: &'p UnixStream) -> Vec<BorrowedFd<'p>> {
        let own = [self.record.as_fd(), line.as_fd()];
        let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let lease = self.lease.as_ref().map(AsFd::as_fd);
        self.layout.descriptors().chain(own).chain(stdio).chain(lease).collect()
    }

    /// Opens the image's layers in the mount namespace of the caller: overlayfs takes no layer by way of another's.
    pub fn open_image(&self) -> Result<Image, StepError> {
        open_image(&self.image_dir, self.spec)
    }
}

/// A later setting of a name wins over an earlier one.
fn environment(config: &ContainerConfig) -> Result<Vec<CString>, StepError> {
    let mut settings: Vec<(&str, &str)> = Vec::new();
    for (name, value) in &config.environment {
        settings.retain(|(earlier, _)| earlier != name);
        settings.push((name, value));
    }
    c_strings(settings.into_iter().map(|(name, value)| format!("{name}={value}")))
}

fn open_image(image_dir: &Path, spec: &JobSpec) -> Result<Image, StepError> {
    images::resolve(image_dir, &spec.image_id)
        .map_err(|error| StepError::said(format!("open image {}", spec.image_id), error))
}

fn c_strings(strings: impl Iterator<Item = String>) -> Result<Vec<CString>, StepError> {
    strings.map(|string| CString::new(string).step(|| "ready the command".to_owned())).collect()
}

/// The container as LXC would be told of it. What is written and what is applied are this one value.
fn container_config(
    launcher: &Launcher,
    layout: &Layout,
    request: &LaunchRequest<'_>,
    image: &Image,
) -> ContainerConfig {
    let spec = request.spec;
    let mut config = ContainerConfig {
        uts_name: request.container.to_owned(),
        rootfs: Rootfs {
            driver: launcher.settings.union,
            lowerdirs: image.layers.iter().map(|layer| layer.path.clone()).collect(),
            upperdir: launcher.settings.container_dir(request.container).join(rootfs::UPPER),
            options: rootfs::root_options(launcher.settings.union),
        },
        mounts: rootfs::mounts::usual(&launcher.settings.empty_dir(), spec.resource.mem * 1024 * 1024),
        // Its own cgroups, which only LXC knows when LXC makes them.
        mount_auto: vec!["cgroup:ro:force".to_owned()],
        network: request.network,
        cap_keep: security::kept_capability_names(),
        no_new_privs: true,
        rlimits: security::default_rlimits(),
        oom_score_adj: launcher.oom_score_adj,
        cgroup: layout.settings(&spec.resource.cpu, spec.resource.mem),
        environment: usual_environment(request),
        init_cwd: "/workspace".to_owned(),
        command_line: spec.command_line.clone(),
        seccomp_profile: Some(launcher.settings.seccomp_profile()),
    };
    config.apply_image(&image.config, security::inherited_rlimit);
    // Last, since the last setting of a name wins: the image overrides the usual, the launcher overrides the image.
    config.environment.extend(request.environment.iter().cloned());
    config
}

/// What every command finds in its environment.
fn usual_environment(request: &LaunchRequest<'_>) -> Vec<(String, String)> {
    let resource = &request.spec.resource;
    let usual = [
        ("PATH", PATH.to_owned()),
        ("HOME", "/root".to_owned()),
        ("HOSTNAME", request.container.to_owned()),
        ("BERTH_CPU", resource.cpu.to_string()),
        ("BERTH_MEM_MIB", resource.mem.to_string()),
    ];
    usual.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
