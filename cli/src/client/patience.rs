//! How long and how often a command tries again while the coordinator is away.

use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// A coordinator that restarts is ready within seconds; one that is not back after a minute is down.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Counts one outage. Times are readings of a monotonic clock.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    failing_since: Option<Duration>,
    delay: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { failing_since: None, delay: FIRST_DELAY }
    }
}

impl Patience {
    /// A call failed. Gives the time to wait before the next one; `None` when the outage is too long.
    pub(crate) fn failed(&mut self, now: Duration) -> Option<Duration> {
        let since = *self.failing_since.get_or_insert(now);
        let left = LIMIT.checked_sub(now.saturating_sub(since)).filter(|left| !left.is_zero())?;
        let delay = self.delay.min(left);
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
        Some(delay)
    }

    /// A call was answered: the outage is over.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Whether no failure stands since the last success.
    pub(crate) fn is_calm(&self) -> bool {
        self.failing_since.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap_and_end_after_the_limit() {
        let mut patience = Patience::default();
        let mut now = Duration::from_secs(1_000);
        let start = now;
        let mut waits = Vec::new();
        while let Some(wait) = patience.failed(now) {
            waits.push(wait);
            now += wait;
        }
        assert_eq!(now - start, LIMIT);
        assert_eq!(waits[..3], [100, 200, 400].map(Duration::from_millis));
        assert!(waits.iter().all(|wait| *wait <= LONGEST_DELAY));
    }

    #[test]
    fn a_success_makes_it_fresh() {
        let mut patience = Patience::default();
        assert!(patience.failed(Duration::ZERO).is_some());
        assert_eq!(patience.failed(LIMIT), None);
        patience.succeeded();
        assert!(patience.is_calm());
        assert_eq!(patience.failed(LIMIT), Some(FIRST_DELAY));
    }
}
