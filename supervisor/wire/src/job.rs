//! A job as its user submits it, and the checks that need no node.

use serde::{Deserialize, Serialize};

use crate::cpu::CpuRequest;
use crate::failure::BadInput;
use crate::ids::ImageId;
use crate::lease::OnNodeLoss;

/// The longest command line, in bytes: one string of an execve(2) argument list (MAX_ARG_STRLEN) less its NUL.
pub const MAX_COMMAND_LINE: usize = 128 * 1024 - 1;
/// The longest job name, in bytes.
pub const MAX_NAME: usize = 256;
/// The most packages one job may stage.
pub const MAX_PACKAGES: usize = 64;
/// The longest list of packages, in bytes.
pub const MAX_PACKAGE_PATH: usize = 64 * 1024;
/// The longest time-out: ten years, in milliseconds.
pub const MAX_TIMEOUT_MS: u64 = 10 * 365 * 24 * 3600 * 1000;
/// The least memory a container can start in, in MiB.
pub const MIN_MEM_MIB: u64 = 4;
/// The most memory anyone can ask for, in MiB: 64 TiB, all that x86-64 addresses physically.
pub const MAX_MEM_MIB: u64 = 64 * 1024 * 1024;

/// What a job needs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// CPU: a list pins, a number floats.
    pub cpu: CpuRequest,
    /// Memory limit in MiB, swap included (swap is 0).
    pub mem: u64,
}

/// A job as submitted: `{"name", "resource": {"cpu", "mem"}, "commandLine", "packagePath", "imageId", "timeout"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    /// Whatever the user calls it.
    pub name: String,
    /// What it needs.
    pub resource: Resource,
    /// Run by the image's `/bin/sh -c`.
    pub command_line: String,
    /// A `;` list of absolute paths on the node.
    #[serde(default)]
    pub package_path: String,
    /// Which image it runs in.
    pub image_id: ImageId,
    /// Milliseconds from the start of the command; 0: none.
    #[serde(default)]
    pub timeout: u64,
    /// What becomes of it when its node is lost. The master's business: no node hears of it.
    #[serde(default)]
    pub on_node_loss: OnNodeLoss,
}

impl JobSpec {
    /// The packages, in the order given; where two bring the same file, the first wins.
    pub fn packages(&self) -> impl Iterator<Item = &str> {
        self.package_path.split(';').map(str::trim).filter(|path| !path.is_empty())
    }

    /// Refuses what no node anywhere could run, naming the field.
    pub fn check(&self) -> Result<(), BadInput> {
        let refuse = |field: &str, message: String| Err(BadInput::new(field, message));
        if self.name.is_empty() || self.name.len() > MAX_NAME {
            return refuse("name", format!("is {} bytes long; it must have 1 to {MAX_NAME}", self.name.len()));
        }
        if self.name.contains('\0') {
            return refuse("name", "contains a NUL character".into());
        }
        if self.command_line.trim().is_empty() {
            return refuse("commandLine", "is empty; give the shell something to run".into());
        }
        if self.command_line.len() > MAX_COMMAND_LINE {
            let len = self.command_line.len();
            return refuse("commandLine", format!("is {len} bytes long; the kernel takes at most {MAX_COMMAND_LINE}"));
        }
        if self.command_line.contains('\0') {
            return refuse("commandLine", "contains a NUL character".into());
        }
        if !(MIN_MEM_MIB..=MAX_MEM_MIB).contains(&self.resource.mem) {
            let mem = self.resource.mem;
            return refuse("resource.mem", format!("{mem} MiB is not from {MIN_MEM_MIB} to {MAX_MEM_MIB}"));
        }
        if self.timeout > MAX_TIMEOUT_MS {
            return refuse("timeout", format!("{} ms is more than ten years", self.timeout));
        }
        self.check_packages()
    }

    fn check_packages(&self) -> Result<(), BadInput> {
        let refuse = |message: String| Err(BadInput::new("packagePath", message));
        if self.package_path.len() > MAX_PACKAGE_PATH {
            return refuse(format!("is {} bytes long; at most {MAX_PACKAGE_PATH} are taken", self.package_path.len()));
        }
        if self.packages().count() > MAX_PACKAGES {
            return refuse(format!("lists {} packages; at most {MAX_PACKAGES} are taken", self.packages().count()));
        }
        for path in self.packages() {
            if !path.starts_with('/') {
                return refuse(format!("{path:?} is not an absolute path on the node"));
            }
            if path.contains('\0') || path.len() >= 4096 {
                return refuse(format!("{path:?} is not a path the kernel takes"));
            }
            if path.split('/').any(|part| part == "..") {
                return refuse(format!("{path:?} contains \"..\"; name the folder itself"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn spec() -> JobSpec {
        let text = r#"{"name":"a","resource":{"cpu":"0","mem":64},"commandLine":"true","packagePath":"/p/a; /p/b;","imageId":"busybox","timeout":5000}"#;
        json::from_slice(text.as_bytes()).unwrap()
    }

    #[test]
    fn packages_are_a_semicolon_list_with_blanks_forgiven() {
        assert_eq!(spec().packages().collect::<Vec<_>>(), ["/p/a", "/p/b"]);
    }

    #[test]
    fn what_no_node_could_run_is_refused_with_the_fields_name() {
        type Spoil = fn(&mut JobSpec);
        let cases: [(&str, Spoil); 10] = [
            ("packagePath", |job| job.package_path = ";".repeat(MAX_PACKAGE_PATH + 1)),
            ("name", |job| job.name = String::new()),
            ("name", |job| job.name = "x".repeat(MAX_NAME + 1)),
            ("commandLine", |job| job.command_line = "  \n".into()),
            ("commandLine", |job| job.command_line = "a\0b".into()),
            ("commandLine", |job| job.command_line = "x".repeat(MAX_COMMAND_LINE + 1)),
            ("resource.mem", |job| job.resource.mem = 0),
            ("resource.mem", |job| job.resource.mem = u64::MAX),
            ("timeout", |job| job.timeout = u64::MAX),
            ("packagePath", |job| job.package_path = "/p/../../etc".into()),
        ];
        assert_eq!(spec().check(), Ok(()));
        for (field, spoil) in cases {
            let mut job = spec();
            spoil(&mut job);
            assert_eq!(job.check().unwrap_err().field, field);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let text = r#"{"name":"a","resource":{"cpu":"0","mem":64,"gpu":1},"commandLine":"true","imageId":"b"}"#;
        let bad = json::from_slice::<JobSpec>(text.as_bytes()).unwrap_err();
        assert_eq!(bad.field, "resource.gpu");
    }
}
