//! A step of a launch that failed: what was being done, and what the kernel said.

use std::fmt::Display;
use std::io;

use nix::errno::Errno;

/// Verb and object of the step, and the errno's name or a sentence. Becomes `launch failed: <step>: <cause>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {cause}")]
pub struct StepError {
    /// `mount overlay on rootfs`.
    pub step: String,
    /// `EINVAL`.
    pub cause: String,
    /// 22, where it was the kernel that said so, and said so to this process.
    pub errno: Option<i32>,
}

impl StepError {
    /// A step that failed for a reason in words.
    pub fn said(step: impl Into<String>, cause: impl Display) -> StepError {
        StepError { step: step.into(), cause: cause.to_string(), errno: None }
    }
}

/// Names the step an error happened in.
pub trait Step<T> {
    /// `name` is only made where there is an error to name.
    fn step(self, name: impl FnOnce() -> String) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl FnOnce() -> String) -> Result<T, StepError> {
        self.map_err(|error| {
            let error = error.into();
            let errno = error.raw_os_error();
            let cause = errno.map_or_else(|| error.to_string(), errno_name);
            StepError { step: name(), cause, errno }
        })
    }
}

/// `EINVAL` for 22.
fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_says_what_was_done_and_the_errno_by_name() {
        let failed: Result<(), StepError> = Err(io::Error::from_raw_os_error(22)).step(|| "mount overlay".into());
        assert_eq!(failed.unwrap_err().to_string(), "mount overlay: EINVAL");
    }
}
