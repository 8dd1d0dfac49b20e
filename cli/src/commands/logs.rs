//! `buildyard logs`

use std::io::Write;
use std::time::Duration;

use buildyard_types::api::{AttemptView, JobView, LogLine};
use buildyard_types::{AttemptId, JobId, RunId};
use clap::Args;
use serde::Serialize;
use tokio::sync::mpsc;

use super::summary;
use crate::Context;
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::logs::printer::{Printer, StepChoice};
use crate::logs::raw;
use crate::logs::reader::{Ending, Mode, Read, Reader};
use crate::output;
use crate::target::{self, Target};
use crate::terminal;

/// Text is written in pieces of about this size while more is at hand.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces of all jobs that wait to be written.
const PIECES: usize = 32;
/// How often a job without an attempt is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Prints logs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard logs -f                 the run of HEAD, as it goes
  buildyard logs 42/test            the last attempt at job `test` of run 42
  buildyard logs 42 --failed        only the jobs that ended badly
  buildyard logs att-42-0-1 --raw > output

On a terminal, colours pass and every other control character is shown as its escape; --raw writes
the job's bytes untouched. Lines that begin with `==` tell where steps begin and end; a job can
print such lines too, so nothing reads them back.")]
pub(crate) struct LogsArgs {
    /// A run, job, attempt, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
    /// Go on until the log is complete
    #[arg(long, short)]
    follow: bool,
    /// Only the step of this name
    #[arg(long, value_name = "NAME")]
    step: Option<String>,
    /// Only jobs that ended badly
    #[arg(long)]
    failed: bool,
    /// The job's bytes, untouched; no lines by the farm
    #[arg(long, conflicts_with = "follow")]
    raw: bool,
}

/// What to read, and how.
#[derive(Clone)]
struct Plan {
    client: Client,
    mode: Mode,
    choice: StepChoice,
    ui: output::Ui,
}

/// One line of `--output json`.
#[derive(Serialize)]
struct JsonLine<'l> {
    attempt: AttemptId,
    job: &'l str,
    #[serde(flatten)]
    record: &'l LogLine,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: LogsArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    let target = target::resolve(&client, args.id.as_deref()).await?;
    let choice = args.step.clone().map_or(StepChoice::All, StepChoice::Named);
    let mode = if args.follow { Mode::Follow } else { Mode::Now };
    let plan = Plan { client, mode, choice, ui: context.ui };
    let jobs = jobs_of(&plan, &target, args.failed).await?;
    if jobs.is_empty() {
        let none =
            if args.failed { "no job ended badly" } else { "the run has no jobs; see `buildyard explain`" };
        context.ui.progress(none);
        return Ok(());
    }
    let only = match target {
        Target::Attempt(attempt) => Some(attempt),
        Target::Job(_) | Target::Runs(_) => None,
    };
    if args.raw {
        for job in &jobs {
            if let Some(attempt) = only.or(last_attempt(job)) {
                raw::copy(&plan.client, attempt, plan.choice.clone()).await?;
            }
        }
        return Ok(());
    }
    match jobs.as_slice() {
        [job] => print_one(&plan, job, only).await,
        several if plan.mode == Mode::Follow => follow_all(&plan, several).await,
        several => print_each(&plan, several).await,
    }
}

/// The jobs that are meant. In a run that was just received they are not known yet: with `-f` they are waited for.
async fn jobs_of(plan: &Plan, target: &Target, failed: bool) -> Result<Vec<JobView>> {
    let jobs = match target {
        Target::Job(job) => vec![target::job(&plan.client, *job).await?],
        Target::Attempt(attempt) => vec![target::job(&plan.client, attempt.job).await?],
        Target::Runs(runs) => {
            let mut jobs = Vec::new();
            for run in runs {
                jobs.extend(jobs_of_run(plan, *run).await?);
            }
            jobs
        }
    };
    let wanted = |job: &JobView| !failed || job.outcome.as_ref().is_some_and(summary::is_red);
    Ok(jobs.into_iter().filter(wanted).collect())
}

async fn jobs_of_run(plan: &Plan, run: RunId) -> Result<Vec<JobView>> {
    loop {
        let view = target::run(&plan.client, run).await?;
        if view.state != "received" || plan.mode == Mode::Now {
            return Ok(view.jobs);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn last_attempt(job: &JobView) -> Option<AttemptId> {
    job.attempts.last().map(|attempt| attempt.id)
}

async fn print_one(plan: &Plan, job: &JobView, only: Option<AttemptId>) -> Result {
    let (pieces, inbox) = mpsc::channel(PIECES);
    let work = read_job(plan, job.id, &job.name, only, None, pieces);
    let (read, written) = tokio::join!(work, write_pieces(inbox));
    written.and(read)
}

async fn print_each(plan: &Plan, jobs: &[JobView]) -> Result {
    for (index, job) in jobs.iter().enumerate() {
        if !plan.ui.json() {
            let gap = if index > 0 { "\n" } else { "" };
            let title = terminal::line(&format!("==== {} {}: {}", job.id, job.name, job.sentence));
            output::print(&format!("{gap}{title}"))?;
        }
        print_one(plan, job, None).await?;
    }
    Ok(())
}

/// All jobs at once, each line behind its job's name.
async fn follow_all(plan: &Plan, jobs: &[JobView]) -> Result {
    let width = jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or(0);
    let (pieces, inbox) = mpsc::channel(PIECES);
    let mut readers = tokio::task::JoinSet::new();
    for job in jobs {
        let (plan, id, name, pieces) = (plan.clone(), job.id, job.name.clone(), pieces.clone());
        let prefix = format!("{:<width$} | ", job.name);
        readers.spawn(async move { read_job(&plan, id, &name, None, Some(prefix), pieces).await });
    }
    drop(pieces);
    write_pieces(inbox).await?;
    while let Some(ended) = readers.join_next().await {
        ended.map_err(|error| CliError::farm("a reader of a log broke off").because(error))??;
    }
    Ok(())
}

async fn write_pieces(mut inbox: mpsc::Receiver<String>) -> Result {
    while let Some(piece) = inbox.recv().await {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(piece.as_bytes())?;
        stdout.flush()?;
    }
    Ok(())
}

/// Reads a job's log: one attempt, or with `-f` each attempt until the job is finished.
async fn read_job(
    plan: &Plan,
    id: JobId,
    name: &str,
    only: Option<AttemptId>,
    prefix: Option<String>,
    pieces: mpsc::Sender<String>,
) -> Result {
    let mut printer = Printer::new(plan.ui, prefix, plan.choice.clone());
    let mut last: Option<AttemptId> = None;
    let mut said = String::new();
    loop {
        let job = target::job(&plan.client, id).await?;
        let next = match only {
            Some(attempt) => last.is_none().then_some(attempt),
            None => next_attempt(&job, last, plan.mode),
        };
        if let Some(attempt) = next {
            if last.is_some() {
                plan.ui.progress(&format!("{name}: {attempt} begins: {}", job.sentence));
            }
            let reader = read_attempt(plan, attempt, name, &mut printer, &pieces).await?;
            last = Some(attempt);
            if reader == OutputReader::Gone {
                return Ok(());
            }
            continue;
        }
        if plan.mode == Mode::Now || only.is_some() || job.outcome.is_some() {
            if last.is_none() {
                plan.ui.progress(&format!("{name} has no log: {}", job.sentence));
            }
            return Ok(());
        }
        if said != job.sentence {
            plan.ui.progress(&format!("{name}: {}", job.sentence));
            said = job.sentence;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The newest attempt alone, or with `-f` the one behind the last that was read.
fn next_attempt(job: &JobView, last: Option<AttemptId>, mode: Mode) -> Option<AttemptId> {
    let newer = |attempt: &&AttemptView| last.is_none_or(|last| attempt.id > last);
    match (mode, last) {
        (Mode::Now, Some(_)) => None,
        (Mode::Now, None) => last_attempt(job),
        (Mode::Follow, _) => job.attempts.iter().find(newer).map(|attempt| attempt.id),
    }
}

/// Whether somebody still reads the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputReader {
    There,
    Gone,
}

async fn read_attempt(
    plan: &Plan,
    attempt: AttemptId,
    name: &str,
    printer: &mut Printer,
    pieces: &mpsc::Sender<String>,
) -> Result<OutputReader> {
    let mut reader = Reader::new(&plan.client, attempt, plan.mode);
    let mut out = String::new();
    loop {
        match reader.next().await? {
            Read::Record(record) if plan.ui.json() => {
                let line = output::json_line(&JsonLine { attempt, job: name, record: &record })?;
                out.push_str(&line);
                out.push('\n');
            }
            Read::Record(record) => printer.push(&record, &mut out),
            Read::Lost(reason) => plan.ui.progress(&format!("{reason}; trying again for a minute")),
            Read::End(ending) => {
                printer.finish(&mut out);
                let sent = pieces.send(out).await;
                if ending == Ending::Cut {
                    plan.ui.progress(&format!("{attempt}: the log may miss its end"));
                }
                return Ok(if sent.is_err() { OutputReader::Gone } else { OutputReader::There });
            }
        }
        if (out.len() >= PIECE_BYTES || !reader.is_ready()) && !out.is_empty() {
            let piece = std::mem::take(&mut out);
            if pieces.send(piece).await.is_err() {
                return Ok(OutputReader::Gone);
            }
        }
    }
}
