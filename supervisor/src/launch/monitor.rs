//! `monitor_out`: what init did for a task, a line a step, each with its time.
//!
//! Lines are kept until the log is open and written in few writes, since each may be a journey over the network.
//! A monitor that cannot be written never fails a task: the end record is what counts.

use std::fs::File;
use std::io::Write;

use jiff::Timestamp;

/// The lines so far, and where they go.
#[derive(Debug, Default)]
pub struct Monitor {
    waiting: String,
    file: Option<File>,
}

impl Monitor {
    /// Adds a line; [`Monitor::flush`] writes it.
    pub fn say(&mut self, what: impl AsRef<str>) {
        let now = Timestamp::now();
        self.waiting.push_str(&format!("{now:.3} {}\n", what.as_ref().replace('\n', "\\n")));
    }

    /// From now on lines have somewhere to go.
    pub fn open(&mut self, file: File) {
        self.file = Some(file);
    }

    /// Writes what waits, in one write.
    pub fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            // Nobody is left to be told: the share is full or gone, and the task goes on.
            let _ = file.write_all(self.waiting.as_bytes());
        }
        self.waiting.clear();
    }
}
