//! The cap on a task's output: when to look how long its logs are, which is too long, and the cut.
//!
//! The command writes its logs itself, so they are looked at from time to time: the sooner, the less room is left. A look
//! asks nobody: `AT_STATX_DONT_SYNC` with the size alone is answered from what this kernel knows (statx(2);
//! `fuse_update_get_attr()` in fs/fuse/dir.c, `nfs_getattr()` in fs/nfs/inode.c), and all that is written here is known
//! here. The cut may hang with the share, and so comes after everything that must not wait.

use std::fs::File;
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags};
use wire::Log;

/// Few logs are written faster than this, in bytes a second: the time between two looks rests on it.
const GENEROUS_RATE: u64 = 512 << 20;
/// A look costs some microseconds; so even a flood costs next to nothing.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// What is faster than [`GENEROUS_RATE`] is found out after this.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// The logs of one task, and how long each may be.
#[derive(Debug)]
pub struct LogCap {
    logs: [(Log, File); 2],
    limit_bytes: u64,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// No log is over the cap; the next look is due after so long.
    Within(Duration),
    /// This one is.
    Over(Log),
}

impl LogCap {
    /// Watches these.
    pub fn new(stdout: File, stderr: File, limit_bytes: u64) -> LogCap {
        LogCap { logs: [(Log::Stdout, stdout), (Log::Stderr, stderr)], limit_bytes }
    }

    /// The cap.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Looks at all of them.
    pub fn look(&self) -> Look {
        look(self.limit_bytes, self.logs.iter().map(|(log, file)| (*log, known_size(file))))
    }

    /// Cuts what is over the cap. Whoever could write on must be gone.
    pub fn cut(&self) -> std::io::Result<()> {
        let over = self.logs.iter().filter(|(_, file)| known_size(file) > self.limit_bytes);
        over.map(|(_, file)| file.set_len(self.limit_bytes)).fold(Ok(()), Result::and)
    }
}

fn look(limit_bytes: u64, sizes: impl Iterator<Item = (Log, u64)> + Clone) -> Look {
    if let Some((log, _)) = sizes.clone().find(|(_, size)| *size > limit_bytes) {
        return Look::Over(log);
    }
    let longest = sizes.map(|(_, size)| size).max().unwrap_or(0);
    Look::Within(pause(limit_bytes.saturating_sub(longest)))
}

/// The time in which `room` could be filled.
fn pause(room: u64) -> Duration {
    let micros = u128::from(room) * 1_000_000 / u128::from(GENEROUS_RATE);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// The size as far as it is known here. What cannot be told counts as nothing: no task ends for want of a look.
fn known_size(file: &File) -> u64 {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(file, c"", flags, StatxFlags::SIZE).map_or(0, |seen| seen.stx_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::io::Write;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_less_room_is_left_the_sooner_is_the_next_look() {
        let after = |stdout| look(GIB, [(Log::Stdout, stdout), (Log::Stderr, 0)].into_iter());
        assert_eq!(after(0), Look::Within(Duration::from_secs(2)));
        assert_eq!(after(GIB / 2), Look::Within(Duration::from_secs(1)));
        assert_eq!(after(GIB), Look::Within(SHORTEST_PAUSE));
        assert_eq!(after(GIB + 1), Look::Over(Log::Stdout));
        assert_eq!(pause(u64::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn each_log_has_the_cap_to_itself_and_the_cut_leaves_what_it_allows() {
        let scratch = Scratch::new("log-cap");
        let open = |name: &str| File::options().append(true).create(true).open(scratch.join(name)).unwrap();
        let cap = LogCap::new(open("out"), open("err"), 10);
        open("out").write_all(b"0123456789").unwrap();
        open("err").write_all(b"01234").unwrap();
        assert_eq!(cap.look(), Look::Within(SHORTEST_PAUSE));
        open("err").write_all(b"56789a").unwrap();
        assert_eq!(cap.look(), Look::Over(Log::Stderr));
        cap.cut().unwrap();
        assert_eq!(std::fs::read(scratch.join("err")).unwrap(), b"0123456789");
        assert_eq!(std::fs::read(scratch.join("out")).unwrap(), b"0123456789");
    }
}
