//! The one clock of the coordinator: wall time, read once, carried on by the monotonic clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use buildyard_types::Timestamp;

/// Tells the time. A jump of the wall clock after the start moves neither leases nor limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    anchor: Instant,
    wall_ms: u64,
}

impl Clock {
    /// Anchors the wall clock to the monotonic one, now.
    pub(crate) fn start() -> Self {
        // A clock before 1970 is a broken host; the farm still works, its dates are wrong.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { anchor: Instant::now(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(0) }
    }

    /// The moment.
    pub(crate) fn now(&self) -> Timestamp {
        let passed = u64::try_from(self.anchor.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.wall_ms.saturating_add(passed))
    }

    /// A moment of this clock as the runtime's timers want it.
    pub(crate) fn instant(&self, at: Timestamp) -> tokio::time::Instant {
        let from_anchor = std::time::Duration::from_millis(at.0.saturating_sub(self.wall_ms));
        tokio::time::Instant::from_std(self.anchor + from_anchor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::Millis;

    #[test]
    fn moments_become_timers_of_the_same_clock() {
        let clock = Clock::start();
        let later = clock.now() + Millis(5_000);
        let earlier = clock.instant(clock.now());
        assert!(clock.instant(later) > earlier);
        assert!(clock.instant(Timestamp(0)) <= earlier, "a moment before the start is due at once");
    }
}
