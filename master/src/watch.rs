//! On a share: looks every second whether the claim still holds, and says when that was last seen.
//!
//! A master whose host was cut off writes nothing any more, nor orders what follows from a write, since every commit asks
//! first. But it could go on showing what was true before, and renewing leases that another has counted out. So both depend
//! on when it was last seen to have the state dir.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::claim::{Claim, ClaimError};

/// How often the claim is renewed.
const PERIOD: Duration = Duration::from_secs(1);
/// How long after the last renewal something is still shown. No share gives a lock up so soon after it last heard of its
/// holder: GlusterFS takes 10 s, as `scripts/config-glusterfs-master` sets it up, or else 40 s.
const FRESH: Duration = Duration::from_secs(5);

/// When the claim was last seen to hold.
#[derive(Debug, Clone)]
pub struct Watch(Option<Arc<Mutex<Instant>>>);

impl Watch {
    /// On a machine's own disk there is nothing to watch: a lock is lost with the process only.
    pub fn none() -> Watch {
        Watch(None)
    }

    /// Watches for as long as the claim holds, on a thread of its own; `lost` hears why it does not any more.
    pub fn start(
        claim: Claim,
        thread: std::thread::Builder,
        lost: impl FnOnce(ClaimError) + Send + 'static,
    ) -> io::Result<Watch> {
        let seen = Arc::new(Mutex::new(Instant::now()));
        let watch = Watch(Some(Arc::clone(&seen)));
        let look = move || {
            loop {
                // The claim held when this began, not when it ended: a share that hangs may answer late.
                let began = Instant::now();
                if let Err(error) = claim.renew() {
                    return lost(error);
                }
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = began;
                std::thread::sleep(PERIOD);
            }
        };
        thread.spawn(look)?;
        Ok(watch)
    }

    /// Whether the claim was seen to hold just now.
    pub fn is_fresh(&self) -> bool {
        let seen = |seen: &Arc<Mutex<Instant>>| *seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.as_ref().is_none_or(|it| seen(it).elapsed() < FRESH)
    }
}
