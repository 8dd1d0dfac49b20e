//! `buildyard watch`: follows runs to their end. What is shown comes from the run's view; events only say when
//! to look again, so that an outage or a restart of the coordinator loses nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use buildyard_types::api::{EventView, RunList, RunState, RunView, TriggerResponse};
use buildyard_types::time::HumanDuration;
use buildyard_types::{RunId, Verdict};
use clap::Args;
use tokio::sync::mpsc;

use super::live::Live;
use super::summary;
use crate::Context;
use crate::checkout;
use crate::client::{Client, Follow, Followed};
use crate::exit::{self, CliError, Kind, Result};
use crate::output;
use crate::target::{self, Written};
use crate::terminal;

/// A push and its run are seconds apart; who types `git push && buildyard watch` is early.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);
/// Events that follow each other this closely are shown together.
const TOGETHER: Duration = Duration::from_millis(50);
/// A run is looked at this often although no event came.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// Live lines show running times; they are drawn anew this often.
const TICK: Duration = Duration::from_secs(1);
/// Updates that wait to be shown.
const UPDATES: usize = 64;
/// Runs that are looked through for the last green one.
const GREEN_WITHIN: u32 = 100;

/// Watches a run to its end; the exit status is the verdict.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  git push && buildyard watch       the run of HEAD, once it appears
  buildyard watch 42 --timeout 10m

Exit status: 0 passed, 1 failed or cancelled, 4 refused, 5 farm fault, 6 --timeout ran out.")]
pub(crate) struct WatchArgs {
    /// A run, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
    /// Give up after this long, with exit status 6; the run goes on
    #[arg(long, value_name = "DURATION")]
    timeout: Option<HumanDuration>,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: WatchArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    let work = async {
        let runs = runs_meant(context, &client, args.id.as_deref()).await?;
        follow(context, &client, &runs).await
    };
    within(args.timeout, work).await
}

/// Bounds a command by `--timeout`.
pub(crate) async fn within<T>(
    limit: Option<HumanDuration>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    match tokio::time::timeout(limit.0.into(), work).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("not finished after {limit}; what was started goes on");
            Err(CliError::new(Kind::Timeout, message))
        }
    }
}

async fn runs_meant(context: &Context, client: &Client, id: Option<&str>) -> Result<Vec<RunId>> {
    let commit = match id.map(str::parse::<Written>).transpose()? {
        None => checkout::head()?,
        Some(Written::Revision(name)) => target::commit_named(&name)?,
        Some(_) => return Ok(target::resolve(client, id).await?.runs()),
    };
    let clock = tokio::time::Instant::now();
    loop {
        let runs = target::runs_of_commit(client, &commit).await?;
        if !runs.is_empty() {
            return Ok(runs);
        }
        let short = output::short_commit(&commit);
        if clock.elapsed() >= APPEARS_WITHIN {
            return Err(CliError::farm(format!("no run of commit {short} appeared within 30s"))
                .hint("start one with `buildyard trigger REPO-PATH`"));
        }
        if clock.elapsed() < Duration::from_millis(500) {
            context.ui.progress(&format!("waiting for a run of commit {short}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What a follower of one run says.
enum Update {
    View(Box<RunView>),
    Event(EventView),
    Lost(String),
    Failed(CliError),
}

/// Follows runs to their end, shows them, and gives the worst verdict as the result.
pub(crate) async fn follow(context: &Context, client: &Client, runs: &[RunId]) -> Result {
    let (updates, mut inbox) = mpsc::channel(UPDATES);
    let mut followers = tokio::task::JoinSet::new();
    for run in runs {
        followers.spawn(follow_one(client.clone(), *run, updates.clone()));
    }
    drop(updates);
    let mut live = Live::new(context.ui);
    let mut views: BTreeMap<RunId, RunView> = BTreeMap::new();
    loop {
        let update = match tokio::time::timeout(TICK, inbox.recv()).await {
            Ok(Some(update)) => update,
            Ok(None) => break,
            // The times in the live lines go on without news.
            Err(_) => {
                live.show(&views);
                continue;
            }
        };
        match update {
            Update::View(view) => {
                views.insert(view.id, *view);
                live.show(&views);
            }
            Update::Event(event) => live.event(&event),
            Update::Lost(reason) => live.say(&format!("{reason}; trying again for a minute")),
            Update::Failed(error) => return Err(error),
        }
    }
    live.end();
    let views: Vec<RunView> = views.into_values().collect();
    let verdict = Verdict::worst(views.iter().filter_map(|run| run.verdict));
    exit::answer(tell(context, client, views).await, exit::by_verdict(verdict))
}

async fn tell(context: &Context, client: &Client, views: Vec<RunView>) -> Result {
    if context.ui.json() {
        return output::print_json(&TriggerResponse { runs: views });
    }
    for view in &views {
        summarise(context, client, view).await?;
    }
    Ok(())
}

async fn follow_one(client: Client, run: RunId, updates: mpsc::Sender<Update>) {
    if let Err(error) = follow_to_end(&client, run, &updates).await {
        // The receiver is gone only when the command has ended already.
        let _ = updates.send(Update::Failed(error)).await;
    }
}

async fn follow_to_end(client: &Client, run: RunId, updates: &mpsc::Sender<Update>) -> Result {
    let id = run.to_string();
    // From the first event on: between the view and the stream nothing can be missed.
    let mut events = Follow::new(client, &["runs", &id, "events"], &[("after", "0".to_owned())]);
    let mut seen = 0;
    loop {
        let view = target::run(client, run).await?;
        let ended = is_final(&view);
        if updates.send(Update::View(Box::new(view))).await.is_err() || ended {
            return Ok(());
        }
        let mut wait = LOOK_AGAIN;
        while let Ok(next) = tokio::time::timeout(wait, events.next()).await {
            let update = match next? {
                Followed::Ended => break,
                Followed::Lost(error) => Update::Lost(error.message),
                Followed::Event(event) => match serde_json::from_str::<EventView>(&event.data) {
                    Ok(event) if event.sequence > seen => {
                        seen = event.sequence;
                        Update::Event(event)
                    }
                    // Said before, or of a kind that this version does not know: the view tells the rest.
                    Ok(_) | Err(_) => continue,
                },
            };
            if updates.send(update).await.is_err() {
                return Ok(());
            }
            wait = TOGETHER;
        }
    }
}

/// Whether nothing will happen to a run any more.
pub(crate) fn is_final(run: &RunView) -> bool {
    match run.state {
        RunState::Finished | RunState::Refused => true,
        RunState::Received | RunState::AwaitingApproval | RunState::Active => false,
    }
}

/// The verdict in a line, the diagnostics of a refused run, three lines for each red job.
async fn summarise(context: &Context, client: &Client, run: &RunView) -> Result {
    for diagnostic in &run.diagnostics {
        output::print(&format!("{}\n", terminal::block(&diagnostic.to_string())))?;
    }
    let red: Vec<_> = run
        .jobs
        .iter()
        .filter_map(|job| job.outcome.as_ref().map(|outcome| (job, outcome)))
        .filter(|(_, outcome)| summary::is_red(outcome))
        .collect();
    if !red.is_empty() {
        let green = last_green(client, run).await;
        for (job, outcome) in red {
            let [cause, since, again] = summary::red_job(run, job, outcome, green.as_ref());
            let cause = terminal::line(&cause);
            output::print(&context.ui.paint(output::outcome_tone(outcome), &cause))?;
            output::print(&terminal::line(&since))?;
            output::print(&terminal::line(&again))?;
        }
    }
    let took = run.finished_at.map(|end| format!(" (after {})", end.since(run.created_at)));
    let title = terminal::line(&format!("{} {}: ", run.id, run.pipeline));
    let sentence = context.ui.paint(output::run_word(run).0, &terminal::line(&run.sentence));
    output::print(&format!("{title}{sentence}{}", took.unwrap_or_default()))
}

/// The last green run before this one. Not knowing it costs one sentence, so no error ends the command here.
async fn last_green(client: &Client, run: &RunView) -> Option<RunView> {
    let query = [
        ("repository", run.repository.clone()),
        ("before", run.id.to_string()),
        ("limit", GREEN_WITHIN.to_string()),
    ];
    let list: RunList = client.get(&["runs"], &query).await.ok()?;
    summary::last_green(run, &list.runs).cloned()
}
