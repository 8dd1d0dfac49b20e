//! When a process that ended is started again. Pure: the caller says how long it ran and waits as told.

use std::time::Duration;

/// A first death is repaired at once: workers and followers are waiting.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A process that dies at every start must not fill the log or the processor.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Who ran for so long was well; its death is a new story.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Counts the deaths of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RestartPolicy {
    failures: u32,
}

impl RestartPolicy {
    /// The process ended, or could not be started, after running for so long. Gives the time to wait.
    pub(crate) fn ended(&mut self, ran_for: Duration) -> Duration {
        if ran_for >= WELL_AFTER {
            self.failures = 0;
        }
        let doubled = FIRST_DELAY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LONGEST_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    #[test]
    fn delays_double_to_the_cap() {
        let mut policy = RestartPolicy::default();
        let delays: Vec<u128> = (0..40).map(|_| policy.ended(SHORT).as_millis()).collect();
        assert_eq!(delays[..5], [100, 200, 400, 800, 1_600]);
        assert!(delays[10..].iter().all(|delay| *delay == LONGEST_DELAY.as_millis()));
    }

    #[test]
    fn who_ran_well_is_restarted_at_once() {
        let mut policy = RestartPolicy::default();
        for _ in 0..5 {
            policy.ended(SHORT);
        }
        assert_eq!(policy.ended(WELL_AFTER), FIRST_DELAY);
        assert_eq!(policy.ended(SHORT), FIRST_DELAY * 2);
    }
}
