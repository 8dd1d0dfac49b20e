//! `buildyard logs`

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use buildyard_types::api::{AttemptView, JobView, LogLine, RunState, RunView};
use buildyard_types::{AttemptId, JobId, RunId};
use clap::Args;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, watch};

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
/// How often a job without an attempt is looked at, or a run in whole where several of its jobs are followed.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Most streams that are open at once, an eighth of what the coordinator gives to all who follow. The logs of further
/// attempts follow when earlier ones are complete.
const STREAMS: usize = 64;

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
        if view.state != RunState::Received || plan.mode == Mode::Now {
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
    let look = Look::Job(plan.client.clone(), job.id);
    let work = read_job(plan, look, &job.name, only, None, pieces);
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

/// All jobs at once, each line behind its job's name. Each run is asked for in one place, whatever the number of its
/// jobs.
async fn follow_all(plan: &Plan, jobs: &[JobView]) -> Result {
    let width = jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or(0);
    let (pieces, inbox) = mpsc::channel(PIECES);
    let streams = Arc::new(Semaphore::new(STREAMS));
    let mut tasks = tokio::task::JoinSet::new();
    for of_run in jobs.chunk_by(|one, other| one.id.run == other.id.run) {
        let (views, view) = watch::channel(None);
        for job in of_run {
            let (plan, name, pieces) = (plan.clone(), job.name.clone(), pieces.clone());
            let look = Look::Run { job: job.id, view: view.clone(), streams: streams.clone() };
            let prefix = format!("{:<width$} | ", job.name);
            tasks.spawn(async move { read_job(&plan, look, &name, None, Some(prefix), pieces).await });
        }
        if let [job, ..] = of_run {
            tasks.spawn(look_at_run(plan.client.clone(), job.id.run, views));
        }
    }
    drop(pieces);
    write_pieces(inbox).await?;
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| CliError::farm("a reader of a log broke off").because(error))??;
    }
    Ok(())
}

/// Asks for a run again and again, for all readers of its jobs, until it has ended or nobody reads any more.
async fn look_at_run(client: Client, run: RunId, views: watch::Sender<Option<Arc<RunView>>>) -> Result {
    while !views.is_closed() {
        let view = target::run(&client, run).await?;
        let ended = super::watch::is_final(&view);
        views.send_replace(Some(Arc::new(view)));
        if ended {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = views.closed() => {}
        }
    }
    Ok(())
}

/// How a reader learns what has become of its job.
enum Look {
    /// By asking for it.
    Job(Client, JobId),
    /// From whoever asks for the whole run.
    Run { job: JobId, view: watch::Receiver<Option<Arc<RunView>>>, streams: Arc<Semaphore> },
}

impl Look {
    /// The job as it is known now; `None` if nobody will say anything about it any more.
    async fn now(&mut self) -> Result<Option<JobView>> {
        match self {
            Look::Job(client, job) => target::job(client, *job).await.map(Some),
            Look::Run { job, view, .. } => {
                // Whoever asks has failed, and says so, if it ends before it knows anything.
                let Ok(known) = view.wait_for(Option::is_some).await else { return Ok(None) };
                let jobs = known.iter().flat_map(|run| &run.jobs);
                Ok(jobs.into_iter().find(|known| known.id == *job).cloned())
            }
        }
    }

    /// Waits until it is worth looking again; `false` if it never will be.
    async fn pause(&mut self) -> bool {
        match self {
            Look::Job(..) => {
                tokio::time::sleep(LOOK_EVERY).await;
                true
            }
            Look::Run { view, .. } => view.changed().await.is_ok(),
        }
    }

    /// The right to open a stream, until it is dropped.
    async fn stream(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        match self {
            Look::Job(..) => None,
            Look::Run { streams, .. } => streams.clone().acquire_owned().await.ok(),
        }
    }
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
    mut look: Look,
    name: &str,
    only: Option<AttemptId>,
    prefix: Option<String>,
    pieces: mpsc::Sender<String>,
) -> Result {
    let mut printer = Printer::new(plan.ui, prefix, plan.choice.clone());
    let mut last: Option<AttemptId> = None;
    let mut said = String::new();
    loop {
        let Some(job) = look.now().await? else { return Ok(()) };
        let next = match only {
            Some(attempt) => last.is_none().then_some(attempt),
            None => next_attempt(&job, last, plan.mode),
        };
        if let Some(attempt) = next {
            if last.is_some() {
                plan.ui.progress(&format!("{name}: {attempt} begins: {}", job.sentence));
            }
            let permit = look.stream().await;
            let reader = read_attempt(plan, attempt, name, &mut printer, &pieces).await?;
            drop(permit);
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
        if !look.pause().await {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::Endpoint;
    use crate::output::{Format, Ui};

    /// A coordinator with one run of many jobs, and what it was asked.
    #[derive(Default)]
    struct Farm {
        jobs: u32,
        has_attempts: bool,
        asked: Mutex<BTreeMap<String, usize>>,
        open: AtomicUsize,
        most_open: AtomicUsize,
    }

    impl Farm {
        fn attempt(&self, job: u32) -> Value {
            json!({
                "id": format!("att-1-{job}-1"), "worker": "wkr-0000000000001", "worker_name": "one", "fence": 1,
                "state": "removed", "outcome": null, "placed_at": 0, "started_at": null, "ended_at": null,
                "steps": [], "usage": { "cpu_ms": 0, "peak_rss": "0", "log_bytes": 0, "prepare_ms": 0 },
                "notes": [], "image_digest": null, "log_length": 0, "log_finished": true,
            })
        }

        fn job(&self, job: u32, ended: bool) -> Value {
            let attempts = if self.has_attempts { vec![self.attempt(job)] } else { Vec::new() };
            json!({
                "id": format!("job-1-{job}"), "name": format!("j{job}"),
                "state": if ended { "finished" } else { "queued" },
                "outcome": if ended { json!({ "kind": "passed" }) } else { Value::Null }, "sentence": "",
                "needs": [], "image": "", "labels": "", "started_at": null, "ended_at": null,
                "attempts": attempts,
            })
        }

        fn run(&self, ended: bool) -> Value {
            let jobs: Vec<Value> = (0..self.jobs).map(|job| self.job(job, ended)).collect();
            json!({
                "id": "run-1", "pipeline": "p", "file": "pipeline.toml", "repository": "/r", "commit": "0",
                "ref_name": null, "state": if ended { "finished" } else { "active" },
                "verdict": if ended { json!("passed") } else { Value::Null }, "sentence": "",
                "diagnostics": [], "images": "open", "created_at": 0, "finished_at": null, "jobs": jobs,
            })
        }

        fn asked(&self, kind: &str) -> usize {
            self.asked.lock().unwrap().get(kind).copied().unwrap_or(0)
        }

        async fn answer(&self, path: &str) -> (&'static str, String) {
            let parts: Vec<&str> = path.trim_start_matches("/api/v1/").split(['/', '?']).collect();
            let times = {
                let mut asked = self.asked.lock().unwrap();
                let times = asked.entry(parts[0].to_owned()).or_default();
                *times += 1;
                *times
            };
            match parts.as_slice() {
                ["runs", _] => ("application/json", self.run(times >= 4).to_string()),
                ["jobs", id] => {
                    let job = id.rsplit('-').next().and_then(|job| job.parse().ok()).unwrap();
                    ("application/json", self.job(job, true).to_string())
                }
                _ => {
                    let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
                    self.most_open.fetch_max(open, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    self.open.fetch_sub(1, Ordering::SeqCst);
                    ("text/event-stream", "event: end\ndata: {}\n\n".to_owned())
                }
            }
        }
    }

    async fn follow(farm: Farm) -> Arc<Farm> {
        let (farm, listener) = (Arc::new(farm), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = farm.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let farm = server.clone();
                tokio::spawn(async move {
                    let mut head = vec![0; 8192];
                    let length = stream.read(&mut head).await.unwrap();
                    let head = String::from_utf8_lossy(&head[..length]).into_owned();
                    let (kind, body) = farm.answer(head.split(' ').nth(1).unwrap()).await;
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all((head + &body).as_bytes()).await;
                });
            }
        });
        let client =
            Client::to(Endpoint { url, token: None, token_origin: String::new(), own: None }).unwrap();
        let run: RunView = serde_json::from_value(farm.run(false)).unwrap();
        let ui = Ui { format: Format::Json, colour: false, live: false };
        let plan = Plan { client, mode: Mode::Follow, choice: StepChoice::All, ui };
        follow_all(&plan, &run.jobs).await.unwrap();
        farm
    }

    #[tokio::test]
    async fn following_many_jobs_asks_for_their_run_and_not_for_each() {
        let farm = follow(Farm { jobs: 300, ..Farm::default() }).await;
        assert_eq!((farm.asked("runs"), farm.asked("jobs")), (4, 0));
    }

    #[tokio::test]
    async fn following_many_jobs_opens_a_bounded_number_of_streams() {
        let jobs = STREAMS as u32 + 40;
        let farm = follow(Farm { jobs, has_attempts: true, ..Farm::default() }).await;
        assert_eq!(farm.asked("attempts"), jobs as usize);
        let most = farm.most_open.load(Ordering::SeqCst);
        assert!(most <= STREAMS, "{most} streams were open at once");
    }
}
