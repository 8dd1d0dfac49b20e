//! The worker's clock: anchored to the wall once, then counted by a clock that nobody can set and that goes on
//! while the host sleeps. A lease that was slept through is over.

use std::time::{SystemTime, UNIX_EPOCH};

use buildyard_types::{Millis, Timestamp};

/// Gives the time as data. Clones agree with each other.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall_ms: u64,
    boot_ms: u64,
}

fn boot_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live value of the type that the call fills.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(result, 0, "every Linux that runs containers has this clock");
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}

impl Clock {
    /// Reads the wall clock for the last time.
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        // A host whose clock stands before 1970 counts from there; only what people see is wrong then.
        Self { wall_ms: wall.map_or(0, |wall| wall.as_millis() as u64), boot_ms: boot_ms() }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.wall_ms) + Millis(boot_ms().saturating_sub(self.boot_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_forward_from_the_wall() {
        let clock = Clock::start();
        let first = clock.now();
        let second = clock.now();
        assert!(second >= first && first.0 > 1_600_000_000_000);
    }
}
