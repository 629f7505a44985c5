//! How much CPU a job asks for, and where: a cpuset list pins, a number floats.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::BadInput;

/// The kernel's own bound on a CPU number (CONFIG_NR_CPUS of the largest distribution kernels).
const MAX_CPU: u16 = 8191;

/// A non-empty set of CPU numbers in the kernel's list format, `0-3,8` (cpuset(7), "List format").
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(BTreeSet<u16>);

impl CpuSet {
    /// The set of these CPUs, if there is at least one.
    pub fn new(cpus: impl IntoIterator<Item = u16>) -> Option<CpuSet> {
        let cpus: BTreeSet<u16> = cpus.into_iter().collect();
        (!cpus.is_empty()).then_some(CpuSet(cpus))
    }

    /// How many CPUs are in it.
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Whether every CPU of this set is in `other`.
    pub fn is_subset(&self, other: &CpuSet) -> bool {
        self.0.is_subset(&other.0)
    }

    /// The CPUs of this set that are not in `other`.
    pub fn missing_from(&self, other: &CpuSet) -> Option<CpuSet> {
        CpuSet::new(self.0.difference(&other.0).copied())
    }

    /// The CPU numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().copied()
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|&next| next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for CpuSet {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        let bad = || BadInput::new("resource.cpu", format!("{text:?} is not a cpuset list such as \"0,1\" or \"0-3\""));
        let number = |digits: &str| -> Result<u16, BadInput> {
            let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|&cpu| all_digits && cpu <= MAX_CPU).ok_or_else(bad)
        };
        let mut cpus = BTreeSet::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        CpuSet::new(cpus).ok_or_else(bad)
    }
}

impl TryFrom<String> for CpuSet {
    type Error = BadInput;

    fn try_from(text: String) -> Result<Self, BadInput> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> String {
        set.to_string()
    }
}

/// An amount of CPU time, in thousandths of one CPU. On the wire a plain number of CPUs: `2`, `0.5`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuAmount {
    milli: u64,
}

impl CpuAmount {
    /// Nothing.
    pub const ZERO: CpuAmount = CpuAmount { milli: 0 };

    /// So many thousandths of a CPU.
    pub const fn from_milli(milli: u64) -> CpuAmount {
        CpuAmount { milli }
    }

    /// So many whole CPUs.
    pub const fn whole(cpus: u32) -> CpuAmount {
        CpuAmount { milli: cpus as u64 * 1000 }
    }

    /// Thousandths of a CPU.
    pub const fn milli(self) -> u64 {
        self.milli
    }

    /// What is left after taking `other` away, never below zero.
    pub const fn saturating_sub(self, other: CpuAmount) -> CpuAmount {
        CpuAmount { milli: self.milli.saturating_sub(other.milli) }
    }

    /// A request read from a number of CPUs: more than zero, at most 8,192, rounded to thousandths.
    fn from_cpus(cpus: f64) -> Result<CpuAmount, BadInput> {
        let milli = (cpus * 1000.0).round();
        if (1.0..=8_192_000.0).contains(&milli) {
            // In range by the line above, so neither sign nor magnitude is lost.
            Ok(CpuAmount { milli: milli as u64 })
        } else {
            Err(BadInput::new("resource.cpu", format!("{cpus} is not an amount of CPU from 0.001 to 8192")))
        }
    }
}

impl std::iter::Sum for CpuAmount {
    fn sum<I: Iterator<Item = CpuAmount>>(amounts: I) -> CpuAmount {
        CpuAmount { milli: amounts.map(|amount| amount.milli).sum() }
    }
}

impl fmt::Display for CpuAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, milli) = (self.milli / 1000, self.milli % 1000);
        if milli == 0 { write!(f, "{whole}") } else { f.write_str(format!("{whole}.{milli:03}").trim_end_matches('0')) }
    }
}

impl Serialize for CpuAmount {
    /// A whole number stays whole: the original's master and jq see `2`, not `2.0`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.milli.is_multiple_of(1000) {
            serializer.serialize_u64(self.milli / 1000)
        } else {
            serializer.serialize_f64(self.milli as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for CpuAmount {
    /// Totals may be zero; that a request is more than nothing is [`CpuRequest`]'s business.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let cpus = f64::deserialize(deserializer)?;
        if cpus == 0.0 {
            return Ok(CpuAmount::ZERO);
        }
        CpuAmount::from_cpus(cpus).map_err(|bad| serde::de::Error::custom(bad.message))
    }
}

/// What a job says in `resource.cpu`. A JSON string is a cpuset list and pins; a number asks for
/// that much CPU anywhere. Where only text can be written (a form, a command line), `x2` or `0.5`
/// is the number and all else the list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum CpuRequest {
    /// Run on these CPUs and no others. Counts as that many CPUs.
    Pinned(CpuSet),
    /// This much CPU time, on whichever CPUs are free.
    Amount(CpuAmount),
}

impl CpuRequest {
    /// How much of a node's CPU it takes up.
    pub fn amount(&self) -> CpuAmount {
        match self {
            CpuRequest::Pinned(set) => CpuAmount::whole(set.count()),
            CpuRequest::Amount(amount) => *amount,
        }
    }

    /// The CPUs it pins to, if it does.
    pub fn pinned(&self) -> Option<&CpuSet> {
        match self {
            CpuRequest::Pinned(set) => Some(set),
            CpuRequest::Amount(_) => None,
        }
    }
}

impl fmt::Display for CpuRequest {
    /// The text form that [`CpuRequest::from_str`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuRequest::Pinned(set) => set.fmt(f),
            CpuRequest::Amount(amount) => write!(f, "x{amount}"),
        }
    }
}

impl FromStr for CpuRequest {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        let text = text.trim();
        let number = text.strip_prefix('x').or_else(|| text.contains('.').then_some(text));
        match number {
            Some(number) => {
                let cpus = number.parse().map_err(|_| {
                    BadInput::new("resource.cpu", format!("{text:?} is not an amount of CPU such as x2 or 0.5"))
                })?;
                CpuAmount::from_cpus(cpus).map(CpuRequest::Amount)
            }
            None => text.parse().map(CpuRequest::Pinned),
        }
    }
}

impl<'de> Deserialize<'de> for CpuRequest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = CpuRequest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a cpuset list such as \"0,1\" or a number of CPUs such as 0.5")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<CpuRequest, E> {
                text.parse().map_err(|bad: BadInput| E::custom(bad.message))
            }

            fn visit_f64<E: serde::de::Error>(self, cpus: f64) -> Result<CpuRequest, E> {
                CpuAmount::from_cpus(cpus).map(CpuRequest::Amount).map_err(|bad| E::custom(bad.message))
            }

            fn visit_u64<E: serde::de::Error>(self, cpus: u64) -> Result<CpuRequest, E> {
                self.visit_f64(cpus as f64)
            }

            fn visit_i64<E: serde::de::Error>(self, cpus: i64) -> Result<CpuRequest, E> {
                self.visit_f64(cpus as f64)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpuset_list_is_read_and_written_in_the_kernels_format() {
        for (given, written) in [("0", "0"), ("0,1", "0-1"), ("3,1,2,0", "0-3"), ("0-2, 5,7-8", "0-2,5,7-8")] {
            assert_eq!(given.parse::<CpuSet>().unwrap().to_string(), written);
        }
        for bad in ["", ",", "1-", "-1", "3-1", "a", "0x1", "1,,2", "99999", "0-99999"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_string_pins_and_a_number_floats() {
        let read = |json: &str| serde_json::from_str::<CpuRequest>(json);
        assert_eq!(read("\"0,1\"").unwrap().amount(), CpuAmount::whole(2));
        assert!(read("\"0,1\"").unwrap().pinned().is_some());
        assert_eq!(read("0.5").unwrap(), CpuRequest::Amount(CpuAmount::from_milli(500)));
        assert_eq!(read("2").unwrap(), CpuRequest::Amount(CpuAmount::whole(2)));
        for bad in ["0", "-1", "1e300", "\"\"", "null", "[]", "true", "0.0001", "\"xNaN\"", "\"x-1\""] {
            assert!(read(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn every_request_survives_its_text_and_its_json() {
        for text in ["0", "0-3,8", "x2", "x0.25"] {
            let request: CpuRequest = text.parse().unwrap();
            assert_eq!(request.to_string(), text);
            let json = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<CpuRequest>(&json).unwrap(), request);
        }
    }
}
