//! `buildyard jobs`

use buildyard_types::JobId;
use buildyard_types::api::{AttemptView, JobView};
use buildyard_types::size::rounded;
use clap::{Args, Subcommand};
use reqwest::Method;

use crate::Context;
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::output::{self, Change, Table};
use crate::selector::Selectors;
use crate::target::{self, Target};
use crate::terminal;

/// Lists, shows and cancels jobs.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    command: Option<JobsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    /// List the jobs of a run (the default)
    List(ListArgs),
    /// Show a job and its attempts
    Show(JobArgs),
    /// Cancel a job
    Cancel(CancelArgs),
}

/// Of which run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard jobs                    the jobs of HEAD's run
  buildyard jobs list 42 -l state=failed
  buildyard jobs show 42/test

Keys of -l: state (or outcome), name, image, worker.")]
pub(crate) struct ListArgs {
    /// A run, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
    #[command(flatten)]
    selectors: Selectors,
}

/// Which job.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// A job: job-42-3 or 42/test
    id: String,
}

/// Which job, and whether to do it.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// A job: job-42-3 or 42/test
    id: String,
    /// Say what would be cancelled and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: JobsArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    match args.command {
        None => list(context, &client, args.list).await,
        Some(JobsCommand::List(args)) => list(context, &client, args).await,
        Some(JobsCommand::Show(args)) => show(context, &client, &args.id).await,
        Some(JobsCommand::Cancel(args)) => cancel(context, &client, args).await,
    }
}

async fn list(context: &Context, client: &Client, args: ListArgs) -> Result {
    args.selectors.check::<JobView>()?;
    let mut jobs = match target::resolve(client, args.id.as_deref()).await? {
        Target::Runs(runs) => {
            let mut jobs = Vec::new();
            for run in runs {
                jobs.extend(target::run(client, run).await?.jobs);
            }
            jobs
        }
        Target::Job(job) => vec![target::job(client, job).await?],
        Target::Attempt(attempt) => vec![target::job(client, attempt.job).await?],
    };
    let is_empty = jobs.is_empty();
    jobs.retain(|job| args.selectors.wants(job));
    if context.ui.json() {
        return output::print_json(&jobs);
    }
    if jobs.is_empty() && !is_empty {
        return output::print("no job has what -l asks for");
    }
    if jobs.is_empty() {
        return output::print("the run has no jobs; `buildyard explain` says why");
    }
    output::print(&table(&jobs).render())
}

/// Jobs as a table.
pub(crate) fn table(jobs: &[JobView]) -> Table {
    let mut table = Table::new(&["JOB", "NAME", "STATE", "TIME", "WHAT"]);
    for job in jobs {
        table.row([job.id.to_string(), job.name.clone(), word(job), time(job), job.sentence.clone()]);
    }
    table
}

/// The word for where a job is.
pub(crate) fn word(job: &JobView) -> String {
    job.outcome.as_ref().map_or_else(|| job.state.to_string(), |outcome| outcome.class().to_owned())
}

/// How long a job has run, or ran.
pub(crate) fn time(job: &JobView) -> String {
    match (job.started_at, job.ended_at) {
        (Some(start), Some(end)) => end.since(start).to_string(),
        (Some(start), None) => output::now().since(start).to_string(),
        (None, _) => String::new(),
    }
}

async fn job_meant(client: &Client, id: &str) -> Result<JobId> {
    target::resolve(client, Some(id)).await?.job().ok_or_else(|| {
        CliError::usage(format!("`{id}` is not a job")).hint("jobs are written job-42-3 or 42/test")
    })
}

async fn show(context: &Context, client: &Client, id: &str) -> Result {
    let job = target::job(client, job_meant(client, id).await?).await?;
    if context.ui.json() {
        return output::print_json(&job);
    }
    let title = terminal::line(&format!("{} {}: {}", job.id, job.name, job.sentence));
    output::print(&title)?;
    for fact in [
        format!("image   {}", job.image),
        format!("labels  {}", job.labels),
        format!("needs   {}", if job.needs.is_empty() { "nothing".into() } else { job.needs.join(", ") }),
    ] {
        output::print(&format!("  {}", terminal::line(&fact)))?;
    }
    job.attempts.iter().try_for_each(show_attempt)
}

fn show_attempt(attempt: &AttemptView) -> Result {
    let end = attempt.outcome.as_ref().map_or_else(|| attempt.state.to_string(), ToString::to_string);
    let title = format!("{} on {}: {end}", attempt.id, attempt.worker_name);
    output::print(&format!("\n{}", terminal::line(&title)))?;
    let mut facts = vec![format!("placed  {}", output::utc(attempt.placed_at))];
    if let Some(start) = attempt.started_at {
        let wait = start.since(attempt.placed_at);
        facts.push(format!("first step began {wait} later"));
    }
    if let Some(digest) = &attempt.image_digest {
        facts.push(format!("image   {digest}"));
    }
    let usage = &attempt.usage;
    if attempt.ended_at.is_some() {
        facts.push(format!(
            "used    {} of processor, {} of memory at most in one process",
            usage.cpu_ms,
            rounded(usage.peak_rss.0)
        ));
    }
    let whole = if attempt.log_finished { "complete" } else { "not complete" };
    facts.push(format!("log     {}, {whole}", rounded(attempt.log_length)));
    facts.extend(attempt.notes.iter().map(|note| format!("note    {note}")));
    for step in &attempt.steps {
        let code = step.exit_code.map_or_else(|| "cut off".into(), |code| format!("exit code {code}"));
        facts.push(format!("step    {}: {code} after {}", step.name, step.duration_ms));
    }
    facts.iter().try_for_each(|fact| output::print(&format!("  {}", terminal::line(fact))))
}

async fn cancel(context: &Context, client: &Client, args: CancelArgs) -> Result {
    let job = job_meant(client, &args.id).await?;
    let subject = job.to_string();
    let sentence = if args.dry_run {
        let view = target::job(client, job).await?;
        format!("would cancel {subject} ({}): {}", view.name, view.sentence)
    } else {
        client.act(Method::POST, &["jobs", &subject, "cancel"]).await?;
        format!("{subject} is being cancelled")
    };
    let change = Change { subject, change: "cancel", dry_run: args.dry_run, sentence };
    context.ui.changed(&change);
    context.ui.all_changed(&[change])
}
