//! How long to wait before trying again: doubling, capped, and spread so that a farm of workers does not
//! return in one wave.

use std::time::Duration;

use rand::Rng as _;

/// Waiting times for one thing that is tried until it succeeds.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    cap: Duration,
}

impl Default for Backoff {
    /// From 100 ms to 2 s: well within a lease, since a coordinator that is back should hear of it soon.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }
}

impl Backoff {
    /// Starts at `first` and never waits longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { next: first, cap }
    }

    /// The next waiting time: between half and the whole of the doubled value.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> Duration {
        let whole = self.next.min(self.cap);
        self.next = (whole * 2).min(self.cap);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_stay_below_it() {
        let cap = Duration::from_millis(800);
        let mut backoff = Backoff::new(Duration::from_millis(100), cap);
        for whole in [100, 200, 400, 800, 800, 800] {
            let whole = Duration::from_millis(whole);
            let wait = backoff.next();
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
        }
    }
}
