//! Ids are types. Each is printed one way and parsed one way, so a task can never be taken for a job.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::BadInput;

macro_rules! counted_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $field:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = BadInput;

            /// Digits only: no sign, no blanks.
            fn from_str(text: &str) -> Result<Self, BadInput> {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                text.parse()
                    .ok()
                    .filter(|_| digits)
                    .map($name)
                    .ok_or_else(|| BadInput::new($field, format!("{text:?} is not a whole number in range")))
            }
        }
    };
}

counted_id!(
    /// What a user submitted. Counts up for ever on one master, never reused.
    #[derive(Default)]
    JobId(u64), "jobId");
counted_id!(
    /// One attempt of a job on one node. Counts up for ever on that node, survives restarts.
    TaskId(u64), "taskId");
counted_id!(
    /// A node, as the operator numbered it.
    NodeId(u32), "nodeId");
counted_id!(
    /// 1, 2, ... of a job. `(master, job, attempt)` is the idempotency key of a task.
    Attempt(u32), "attempt");
counted_id!(
    /// Position of a state change in a node's history; acknowledging N acknowledges all up to N.
    #[derive(Default)]
    EventNumber(u64), "after");
counted_id!(
    /// One life of a master on its state dir. A later life has a higher number, on whatever host it is.
    #[derive(Default)]
    Term(u64), "term");

impl Attempt {
    /// The first attempt of every job.
    pub const FIRST: Attempt = Attempt(1);
}

/// The container of a task, named `t<taskId>-cont`; also its hostname and the name of its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub TaskId);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}-cont", self.0)
    }
}

impl FromStr for ContainerId {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        text.strip_prefix('t')
            .and_then(|rest| rest.strip_suffix("-cont"))
            .and_then(|digits| digits.parse().ok())
            .map(ContainerId)
            .ok_or_else(|| BadInput::new("containerId", format!("{text:?} is not of the form t<taskId>-cont")))
    }
}

impl Serialize for ContainerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|bad: BadInput| serde::de::Error::custom(bad.message))
    }
}

/// The name of an image: a folder below the node's `img/`. One path component, 1 to 64 of
/// `A-Z a-z 0-9 . _ -`, beginning with a letter or digit, so it can be neither `..` nor hidden nor an option.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// The name, safe to use as one path component.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageId {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let good =
            (1..=64).contains(&text.len()) && text.bytes().all(word) && text.as_bytes()[0].is_ascii_alphanumeric();
        if good {
            Ok(ImageId(text.to_owned()))
        } else {
            Err(BadInput::new(
                "imageId",
                format!(
                    "{text:?} is not an image name: 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
                ),
            ))
        }
    }
}

impl TryFrom<String> for ImageId {
    type Error = BadInput;

    fn try_from(text: String) -> Result<Self, BadInput> {
        text.parse()
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.0
    }
}

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

opaque_id!(
    /// Born with a state dir, of a master or a supervisor: a wiped disk is a different instance.
    /// 32 hex digits.
    InstanceId);
opaque_id!(
    /// One boot of a machine, as `/proc/sys/kernel/random/boot_id` says (random(4)).
    BootId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_cannot_leave_the_image_folder() {
        for bad in ["", ".", "..", "a/b", "/etc", "-rf", ".hidden", "a b", "a\0b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<ImageId>().is_err(), "{bad:?} was taken");
        }
        for good in ["busybox", "debian-12.5", "A_1", &"x".repeat(64)] {
            assert_eq!(good.parse::<ImageId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn counted_ids_take_digits_only() {
        assert_eq!("7".parse::<JobId>().unwrap(), JobId(7));
        for bad in ["", "-1", "+1", " 1", "1.0", "0x1", "18446744073709551616"] {
            assert_eq!(bad.parse::<JobId>().unwrap_err().field, "jobId", "{bad:?} was taken");
        }
    }

    #[test]
    fn a_container_id_is_its_task_id_in_words() {
        let id = ContainerId(TaskId(12));
        assert_eq!(id.to_string(), "t12-cont");
        assert_eq!("t12-cont".parse::<ContainerId>().unwrap(), id);
        assert!("t-cont".parse::<ContainerId>().is_err());
    }
}
