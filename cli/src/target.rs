//! What an ID on the command line means: a run, a job, an attempt, a commit, or HEAD's run when it is left out.

use std::collections::BTreeSet;
use std::str::FromStr;

use buildyard_types::api::{JobView, RunList, RunView};
use buildyard_types::{AttemptId, JobId, RunId};

use crate::checkout;
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::output;

/// Runs of one commit that are looked through for the newest of each file.
const RUNS_PER_COMMIT: u32 = 50;

/// An ID as it is written, before anyone was asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Written {
    /// `run-42` or `42`
    Run(RunId),
    /// `job-42-3`
    Job(JobId),
    /// `att-42-3-1`
    Attempt(AttemptId),
    /// `42/test`: a job by its name
    JobName(RunId, String),
    /// A commit, branch or tag.
    Revision(String),
}

impl FromStr for Written {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((run, job)) = text.split_once('/')
            && let Ok(run) = run.parse()
        {
            return Ok(Written::JobName(run, job.to_owned()));
        }
        // What begins like an id is one, or a mistake; a branch called `run-x` is written `heads/run-x`.
        let id_error = |error: buildyard_types::id::ParseIdError| CliError::usage(error.to_string());
        match text.split('-').next() {
            Some("run") => text.parse().map(Written::Run).map_err(id_error),
            Some("job") => text.parse().map(Written::Job).map_err(id_error),
            Some("att") => text.parse().map(Written::Attempt).map_err(id_error),
            // Ten digits and more are rather a commit than a run.
            _ if text.len() < 10 && text.parse::<RunId>().is_ok() => {
                text.parse().map(Written::Run).map_err(id_error)
            }
            _ => Ok(Written::Revision(text.to_owned())),
        }
    }
}

/// What was meant.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Runs: one, or the newest of each pipeline file of a commit. Never empty.
    Runs(Vec<RunId>),
    /// A job.
    Job(JobId),
    /// An attempt.
    Attempt(AttemptId),
}

impl Target {
    /// The runs that are meant, or to which what is meant belongs.
    pub(crate) fn runs(&self) -> Vec<RunId> {
        match self {
            Target::Runs(runs) => runs.clone(),
            Target::Job(job) => vec![job.run],
            Target::Attempt(attempt) => vec![attempt.run()],
        }
    }

    /// The one job that is meant, if it is no whole run.
    pub(crate) fn job(&self) -> Option<JobId> {
        match self {
            Target::Runs(_) => None,
            Target::Job(job) => Some(*job),
            Target::Attempt(attempt) => Some(attempt.job),
        }
    }
}

/// Finds out what was meant. `None` means HEAD.
pub(crate) async fn resolve(client: &Client, text: Option<&str>) -> Result<Target> {
    let commit = match text.map(str::parse::<Written>).transpose()? {
        Some(Written::Run(run)) => return Ok(Target::Runs(vec![run])),
        Some(Written::Job(job)) => return Ok(Target::Job(job)),
        Some(Written::Attempt(attempt)) => return Ok(Target::Attempt(attempt)),
        Some(Written::JobName(run, name)) => return job_named(client, run, &name).await.map(Target::Job),
        Some(Written::Revision(name)) => commit_named(&name)?,
        None => checkout::head()?,
    };
    let runs = runs_of_commit(client, &commit).await?;
    if runs.is_empty() {
        return Err(CliError::usage(format!("no run of commit {} is known", output::short_commit(&commit)))
            .hint("start one with `buildyard trigger REPO-PATH`, or list them with `buildyard runs`"));
    }
    Ok(Target::Runs(runs))
}

/// The commit that a name means here, or the name itself where it looks like a commit.
pub(crate) fn commit_named(name: &str) -> Result<String> {
    // Without git there is no checkout either; a commit can still be meant.
    if let Ok(Some(commit)) = checkout::commit_of(name) {
        return Ok(commit);
    }
    let is_hex = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if (4..=64).contains(&name.len()) && is_hex {
        return Ok(name.to_ascii_lowercase());
    }
    Err(CliError::usage(format!("`{name}` is neither an id nor a commit, branch or tag of this checkout"))
        .hint("ids look like run-42, job-42-3, att-42-3-1 or 42/test"))
}

/// The newest run of each pipeline file at a commit, in the order of the files.
pub(crate) async fn runs_of_commit(client: &Client, commit: &str) -> Result<Vec<RunId>> {
    let query = [("commit", commit.to_owned()), ("limit", RUNS_PER_COMMIT.to_string())];
    let list: RunList = client.get_patiently(&["runs"], &query).await?;
    Ok(newest_of_each_file(&list.runs))
}

fn newest_of_each_file(newest_first: &[RunView]) -> Vec<RunId> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<(&str, RunId)> = newest_first
        .iter()
        .filter(|run| seen.insert((&run.repository, &run.file)))
        .map(|run| (run.file.as_str(), run.id))
        .collect();
    kept.sort_unstable();
    kept.into_iter().map(|(_, run)| run).collect()
}

/// A run with its jobs.
pub(crate) async fn run(client: &Client, run: RunId) -> Result<RunView> {
    client.get_patiently(&["runs", &run.to_string()], &[]).await
}

/// A job with its attempts.
pub(crate) async fn job(client: &Client, job: JobId) -> Result<JobView> {
    client.get_patiently(&["jobs", &job.to_string()], &[]).await
}

async fn job_named(client: &Client, id: RunId, name: &str) -> Result<JobId> {
    let run = run(client, id).await?;
    run.jobs.iter().find(|job| job.name == name).map(|job| job.id).ok_or_else(|| {
        let names: Vec<&str> = run.jobs.iter().map(|job| job.name.as_str()).collect();
        CliError::usage(format!("{id} has no job `{name}`")).hint(match names.is_empty() {
            true => format!("it has no jobs; `buildyard explain {id}` says why"),
            false => format!("its jobs are {}", names.join(", ")),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_what_it_looks_like() {
        let run = RunId(42);
        let rows = [
            ("run-42", Written::Run(run)),
            ("42", Written::Run(run)),
            ("job-42-3", Written::Job(run.job(3))),
            ("att-42-3-1", Written::Attempt(run.job(3).attempt(1))),
            ("42/test", Written::JobName(run, "test".into())),
            ("run-42/unit/a", Written::JobName(run, "unit/a".into())),
            ("main", Written::Revision("main".into())),
            ("feature/x", Written::Revision("feature/x".into())),
            ("1234567890", Written::Revision("1234567890".into())),
            ("0c1d2e3f", Written::Revision("0c1d2e3f".into())),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Written>().unwrap(), expected, "{text}");
        }
        for text in ["run-", "run-042", "job-1", "att-1-2"] {
            assert!(text.parse::<Written>().is_err(), "{text}");
        }
    }
}
