//! What is said of a job that ended badly: the cause, what changed since it was green, and the command that
//! repeats it here. Pure; the callers fetch what it needs.

use buildyard_types::api::{JobView, RunView};
use buildyard_types::{Fault, Outcome};

use crate::output;

/// Whether somebody has to look at a job: it neither passed nor was it skipped.
pub(crate) fn is_red(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Passed | Outcome::Skipped { .. } => false,
        Outcome::Failed { .. }
        | Outcome::TimedOut { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. }
        | Outcome::Cancelled { .. }
        | Outcome::Refused { .. }
        | Outcome::Infra { .. } => true,
    }
}

/// The three lines of a red job of the farm. `green` is the last run before it that passed.
pub(crate) fn red_job(
    run: &RunView,
    job: &JobView,
    outcome: &Outcome,
    green: Option<&RunView>,
) -> [String; 3] {
    let fault = match outcome.fault() {
        Fault::Job => format!("; its log: buildyard logs {}/{}", run.id.0, job.name),
        Fault::Farm => "; the farm's fault, the commit is not to blame".to_owned(),
        Fault::Nobody => String::new(),
    };
    let since = match green {
        Some(green) if green.commit == run.commit => {
            format!("{} of the same commit was green, so look at what is not in the commit", green.id)
        }
        Some(green) => format!(
            "green before: {}; since then: git log --oneline {}..{}",
            green.id,
            output::short_commit(&green.commit),
            output::short_commit(&run.commit)
        ),
        None => "no green run of this pipeline is known".to_owned(),
    };
    [
        format!("{} {outcome}{fault}", job.name),
        format!("  {since}"),
        format!("  {}", again(&job.name, outcome)),
    ]
}

/// The three lines of a red job of `buildyard run`.
pub(crate) fn red_local_job(name: &str, outcome: &Outcome) -> [String; 3] {
    let fault = match outcome.fault() {
        Fault::Job => "the job's fault: look at the output above",
        Fault::Farm => "not the job's fault: `buildyard doctor` says what this machine lacks",
        Fault::Nobody => "nobody's fault",
    };
    [format!("{name} {outcome}"), format!("  {fault}"), format!("  {}", again(name, outcome))]
}

fn again(job: &str, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused { .. } => "check the file here: buildyard check".to_owned(),
        Outcome::Passed
        | Outcome::Skipped { .. }
        | Outcome::Failed { .. }
        | Outcome::TimedOut { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. }
        | Outcome::Cancelled { .. }
        | Outcome::Infra { .. } => format!("repeat it here: buildyard run {}", quoted(job)),
    }
}

/// A job's name as a shell takes it.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '=' | ',');
    if !name.is_empty() && name.chars().all(plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}

/// The newest run before `run` that passed, of the same file and, where there is one, of the same branch.
pub(crate) fn last_green<'r>(run: &RunView, newest_first: &'r [RunView]) -> Option<&'r RunView> {
    let passed = |other: &&RunView| {
        other.id < run.id
            && other.file == run.file
            && other.repository == run.repository
            && other.verdict == Some(buildyard_types::Verdict::Passed)
    };
    let same_branch = |other: &&RunView| other.ref_name == run.ref_name;
    let of_branch = newest_first.iter().filter(passed).find(same_branch);
    of_branch.or_else(|| newest_first.iter().find(passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_a_shell_wants_them() {
        assert_eq!(quoted("unit/a"), "unit/a");
        assert_eq!(quoted("unit (gcc)"), "'unit (gcc)'");
        assert_eq!(quoted("it's;reboot"), "'it'\\''s;reboot'");
    }

    #[test]
    fn a_local_failure_names_cause_fault_and_command() {
        let outcome = Outcome::Failed { step: "unit".into(), exit_code: 2 };
        assert_eq!(
            red_local_job("test", &outcome),
            [
                "test failed: step `unit` ended with exit code 2",
                "  the job's fault: look at the output above",
                "  repeat it here: buildyard run test",
            ]
        );
    }
}
