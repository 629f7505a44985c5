//! The daemons' log: one line a message on stderr, for whatever the operator's init collects.

use std::io::Write;

use jiff::Timestamp;
use log::{LevelFilter, Log, Metadata, Record};

struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let now = Timestamp::now();
        // One write a line, so lines of forked children never mix. A closed stderr stops no daemon.
        let line = format!("{now:.3} {:5} {}\n", record.level(), record.args());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Installs the log. The level is `info`, or what `BERTH_LOG` names: off error warn info debug trace.
pub fn init() {
    let level = std::env::var("BERTH_LOG").ok().and_then(|word| word.parse().ok()).unwrap_or(LevelFilter::Info);
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(level);
    }
}
