//! An interrupt asks a long program of ours to come to its end: it still stops its daemons and removes what is theirs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// Whether somebody pressed Ctrl-C or sent SIGTERM.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on neither ends the process.
    pub fn expect() -> io::Result<Interrupt> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Interrupt(asked))
    }

    /// Whether to end.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
