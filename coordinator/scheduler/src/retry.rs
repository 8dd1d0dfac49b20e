//! Whose fault a failure is, and whether to try again.

use buildyard_types::outcome::InfraCause;
use buildyard_types::{Millis, Outcome, Timestamp};

use crate::state::Settings;

/// What becomes of a job whose attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is over.
    Finish(Outcome),
    /// It is tried again, not before this.
    Retry {
        /// The moment.
        not_before: Timestamp,
    },
}

/// Only what the farm did is tried again, and only so often.
///
/// `attempts` counts the one that just ended. `settle_ms` is how long something of it may still run, so that
/// no other container of the job may start.
pub fn after(
    outcome: Outcome,
    attempts: u32,
    settle_ms: Millis,
    settings: &Settings,
    now: Timestamp,
) -> Next {
    if !is_tried_again(&outcome) || attempts >= settings.max_attempts {
        return Next::Finish(outcome);
    }
    Next::Retry { not_before: now + backoff(&outcome, attempts, settings).max(settle_ms) }
}

fn backoff(outcome: &Outcome, attempts: u32, settings: &Settings) -> Millis {
    if let Outcome::Infra { cause: InfraCause::WorkerLost, .. } = outcome {
        // Lease and grace were long enough, and that worker gets nothing anyway.
        return Millis(0);
    }
    let doublings = attempts.saturating_sub(1).min(16);
    Millis(settings.retry_backoff_ms.0.saturating_mul(1 << doublings))
}

fn is_tried_again(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Infra { cause, .. } => match cause {
            InfraCause::WorkerLost
            | InfraCause::SelfFenced
            | InfraCause::Engine
            | InfraCause::Pull
            | InfraCause::WorkerDisk
            | InfraCause::Source
            | InfraCause::Worker => true,
            // A worker that answers and does not stop its container gives no moment after which the container
            // is surely gone: a second one could run beside it.
            InfraCause::StopIgnored => false,
        },
        // Waiting for a worker is the farm's fault too, but waiting again would not help.
        Outcome::TimedOut { .. }
        | Outcome::Passed
        | Outcome::Failed { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. }
        | Outcome::Cancelled { .. }
        | Outcome::Skipped { .. }
        | Outcome::Refused { .. } => false,
    }
}

/// How long a worker may be silent before its attempts are given up: lease and grace.
pub fn silence_ms(settings: &Settings) -> Millis {
    Millis(settings.lease_ms.0.saturating_add(settings.grace_ms.0))
}

/// How long a container may run on whose worker forgot it: nobody renews it, so its init stops it at the end of
/// the lease, if the worker has not swept it before.
pub fn forgotten_ms(settings: &Settings) -> Millis {
    silence_ms(settings)
}

/// When an attempt that its worker was told at `now` to stop counts as ended without the worker's word.
///
/// Never before lease and grace: an order that is still on its way is dead by then, since a session begins
/// none whose lease is over.
pub fn stop_deadline(settings: &Settings, now: Timestamp) -> Timestamp {
    let patience = settings.stop_grace_ms.0.saturating_add(settings.stop_slack_ms.0);
    now + Millis(patience).max(silence_ms(settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::ByteSize;
    use buildyard_types::outcome::TimeLimit;

    fn infra(cause: InfraCause) -> Outcome {
        Outcome::Infra { cause, detail: "it broke".into() }
    }

    #[test]
    fn only_what_the_farm_did_is_tried_again() {
        let now = Timestamp(0);
        let settings = Settings::default();
        let (step, limit) = (None, ByteSize(1));
        for outcome in [
            Outcome::Passed,
            Outcome::Failed { step: "unit".into(), exit_code: 137 },
            Outcome::TimedOut { limit: TimeLimit::Job, after_ms: Millis(1) },
            Outcome::TimedOut { limit: TimeLimit::Queue, after_ms: Millis(1) },
            Outcome::OutOfMemory { step: step.clone(), limit },
            Outcome::DiskQuota { step: step.clone(), limit },
            Outcome::LogCap { step, limit },
            Outcome::Cancelled { by: "by admin".into() },
            Outcome::Skipped { reason: "job `a` failed".into() },
            Outcome::Refused { reason: "no shell".into() },
            infra(InfraCause::StopIgnored),
        ] {
            assert_eq!(after(outcome.clone(), 1, Millis(0), &settings, now), Next::Finish(outcome));
        }
        assert!(matches!(after(infra(InfraCause::Pull), 1, Millis(0), &settings, now), Next::Retry { .. }));
    }

    #[test]
    fn attempts_are_counted_and_the_wait_doubles() {
        let settings = Settings { max_attempts: 4, ..Settings::default() };
        let next =
            |attempts| after(infra(InfraCause::Engine), attempts, Millis(0), &settings, Timestamp(10_000));
        assert_eq!(next(1), Next::Retry { not_before: Timestamp(11_000) });
        assert_eq!(next(2), Next::Retry { not_before: Timestamp(12_000) });
        assert_eq!(next(3), Next::Retry { not_before: Timestamp(14_000) });
        assert_eq!(next(4), Next::Finish(infra(InfraCause::Engine)));
    }

    #[test]
    fn after_a_lost_worker_nobody_waits_any_longer() {
        let next = after(infra(InfraCause::WorkerLost), 2, Millis(0), &Settings::default(), Timestamp(7));
        assert_eq!(next, Next::Retry { not_before: Timestamp(7) });
    }

    #[test]
    fn what_may_still_run_somewhere_is_waited_for() {
        let settings = Settings::default();
        let next = after(infra(InfraCause::Worker), 1, forgotten_ms(&settings), &settings, Timestamp(0));
        assert_eq!(next, Next::Retry { not_before: Timestamp(25_000) });
    }

    #[test]
    fn a_worker_has_at_least_a_lease_to_answer_a_stop() {
        let settings = Settings { stop_grace_ms: Millis(1), stop_slack_ms: Millis(1), ..Settings::default() };
        assert_eq!(stop_deadline(&settings, Timestamp(0)), Timestamp(25_000));
    }
}
