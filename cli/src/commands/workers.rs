//! `buildyard workers`

use buildyard_types::api::{InviteRequest, InviteResponse, WorkerView};
use buildyard_types::size::rounded;
use buildyard_types::time::HumanDuration;
use clap::{Args, Subcommand};
use reqwest::Method;

use crate::Context;
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::output::{self, Change, Table};
use crate::selector::Selectors;
use crate::terminal;

/// Invites, lists, cordons and removes workers.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct WorkersArgs {
    #[command(subcommand)]
    command: Option<WorkersCommand>,
    #[command(flatten)]
    list: ListArgs,
}

/// Which workers to list.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard workers -l pool=gpu -l arch=arm64
  buildyard workers list -l cordoned=true

Keys of -l: state, name, cordoned, pool, and every fact that workers found (arch, distro, os, …).")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    selectors: Selectors,
}

#[derive(Debug, Subcommand)]
enum WorkersCommand {
    /// Make a one-time token with which a worker joins
    Invite(InviteArgs),
    /// List workers (the default)
    List(ListArgs),
    /// Show a worker
    Show(WorkerArgs),
    /// Give a worker no new attempts; those it holds go on
    Cordon(ChangeArgs),
    /// Give a worker attempts again
    Uncordon(ChangeArgs),
    /// Forget a worker; its credential becomes worthless
    Remove(ChangeArgs),
}

/// What the invitation grants.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  buildyard workers invite --pool linux > worker.token
  buildyard serve worker --coordinator http://127.0.0.1:7317 --token-file worker.token")]
pub(crate) struct InviteArgs {
    /// A pool that the worker will belong to; may be given several times
    #[arg(long = "pool", value_name = "NAME")]
    pools: Vec<String>,
    /// How long the token can be used [default: 1h, at most 7d]
    #[arg(long = "for", value_name = "DURATION")]
    valid: Option<HumanDuration>,
}

/// Which worker.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// A worker's id or name
    worker: String,
}

/// Which worker, and whether to do it.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// A worker's id or name
    worker: String,
    /// Say what would change and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: WorkersArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    match args.command.unwrap_or(WorkersCommand::List(args.list)) {
        WorkersCommand::Invite(args) => invite(context, &client, args).await,
        WorkersCommand::List(args) => list(context, &client, &args.selectors).await,
        WorkersCommand::Show(args) => show(context, &client, &args.worker).await,
        WorkersCommand::Cordon(args) => change(context, &client, args, Verb::Cordon).await,
        WorkersCommand::Uncordon(args) => change(context, &client, args, Verb::Uncordon).await,
        WorkersCommand::Remove(args) => change(context, &client, args, Verb::Remove).await,
    }
}

/// What can be done to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Cordon,
    Uncordon,
    Remove,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Cordon => "cordon",
            Verb::Uncordon => "uncordon",
            Verb::Remove => "remove",
        }
    }

    /// What the worker is then.
    fn done(self) -> &'static str {
        match self {
            Verb::Cordon => "cordoned: it gets no new attempts",
            Verb::Uncordon => "uncordoned: it gets attempts again",
            Verb::Remove => "removed: its credential is worthless",
        }
    }

    async fn act(self, client: &Client, id: &str) -> Result {
        match self {
            Verb::Cordon | Verb::Uncordon => client.act(Method::POST, &["workers", id, self.name()]).await,
            Verb::Remove => client.act(Method::DELETE, &["workers", id]).await,
        }
    }
}

async fn invite(context: &Context, client: &Client, args: InviteArgs) -> Result {
    let request = InviteRequest { pools: args.pools, valid_ms: args.valid.map(|valid| valid.0) };
    let invite: InviteResponse = client.post(&["workers", "invite"], &request).await?;
    if context.ui.json() {
        return output::print_json(&invite);
    }
    // The token alone on standard output, so that `> worker.token` makes the file that the worker wants.
    output::print(&terminal::line(&invite.token))?;
    context.ui.progress(&format!(
        "good once, until {}; the worker takes it with `buildyard serve worker --coordinator {} --token-file FILE`",
        output::utc(invite.expires_at),
        client.url()
    ));
    Ok(())
}

async fn list(context: &Context, client: &Client, selectors: &Selectors) -> Result {
    selectors.check::<WorkerView>()?;
    let mut workers: Vec<WorkerView> = client.get(&["workers"], &[]).await?;
    let is_empty = workers.is_empty();
    workers.retain(|worker| selectors.wants(worker));
    if context.ui.json() {
        return output::print_json(&workers);
    }
    if workers.is_empty() && !is_empty {
        return output::print("no worker has what -l asks for");
    }
    if workers.is_empty() {
        return output::print(
            "no workers; `buildyard up` starts one here, `buildyard workers invite` asks one in",
        );
    }
    let mut table = Table::new(&["WORKER", "NAME", "STATE", "SLOTS", "MEMORY", "LABELS", "VERSION"]);
    for worker in &workers {
        table.row([
            worker.id.to_string(),
            worker.name.clone(),
            state(worker),
            format!("{}/{}", worker.used.slots, worker.capacity.slots),
            format!("{}/{}", rounded(worker.used.memory.0), rounded(worker.capacity.memory.0)),
            labels(worker),
            worker.version.clone(),
        ]);
    }
    output::print(&table.render())
}

/// The first thing that a reader has to know of a worker.
fn state(worker: &WorkerView) -> String {
    if worker.cordoned {
        return format!("{}, cordoned", worker.liveness);
    }
    match &worker.unfit {
        Some(reason) => format!("{}, takes none: {reason}", worker.liveness),
        None => worker.liveness.to_string(),
    }
}

fn labels(worker: &WorkerView) -> String {
    let facts = worker.labels.facts.iter().map(|(key, value)| format!("{key}={value}"));
    facts.chain(worker.labels.pools.iter().cloned()).collect::<Vec<_>>().join(" ")
}

/// Finds a worker by its id or its name.
async fn find(client: &Client, text: &str) -> Result<WorkerView> {
    let workers: Vec<WorkerView> = client.get(&["workers"], &[]).await?;
    let mut found = workers.into_iter().filter(|worker| worker.id.to_string() == text || worker.name == text);
    match (found.next(), found.next()) {
        (Some(worker), None) => Ok(worker),
        (Some(_), Some(_)) => Err(CliError::usage(format!("several workers are named `{text}`"))
            .hint("use the id that `buildyard workers` shows")),
        (None, _) => {
            Err(CliError::usage(format!("there is no worker `{text}`"))
                .hint("`buildyard workers` lists them"))
        }
    }
}

async fn show(context: &Context, client: &Client, text: &str) -> Result {
    let worker = find(client, text).await?;
    if context.ui.json() {
        return output::print_json(&worker);
    }
    let heard = worker
        .last_heard_at
        .map_or_else(|| "not since the coordinator started".to_owned(), |at| output::ago(at, output::now()));
    let attempts: Vec<String> = worker.attempts.iter().map(ToString::to_string).collect();
    let cpus = |millis: u64| format!("{:.1}", millis as f64 / 1_000.0);
    for line in [
        format!("{} {}: {}", worker.id, worker.name, state(&worker)),
        format!("  heard of  {heard}"),
        format!("  version   {}", worker.version),
        format!("  labels    {}", labels(&worker)),
        format!("  slots     {} of {} used", worker.used.slots, worker.capacity.slots),
        format!("  cpus      {} of {} used", cpus(worker.used.cpu_millis), cpus(worker.capacity.cpu_millis)),
        format!(
            "  memory    {} of {} used",
            rounded(worker.used.memory.0),
            rounded(worker.capacity.memory.0)
        ),
        format!("  disk      {} of {} used", rounded(worker.used.disk.0), rounded(worker.capacity.disk.0)),
        format!("  attempts  {}", if attempts.is_empty() { "none".into() } else { attempts.join(" ") }),
        format!("  images    {}", worker.images.len()),
    ] {
        output::print(&terminal::line(&line))?;
    }
    Ok(())
}

async fn change(context: &Context, client: &Client, args: ChangeArgs, verb: Verb) -> Result {
    let worker = find(client, &args.worker).await?;
    let subject = worker.id.to_string();
    let sentence = if args.dry_run {
        format!("{} ({subject}) would be {}", worker.name, verb.done())
    } else {
        verb.act(client, &subject).await?;
        format!("{} ({subject}) is {}", worker.name, verb.done())
    };
    let change = Change { subject, change: verb.name(), dry_run: args.dry_run, sentence };
    context.ui.changed(&change);
    context.ui.all_changed(&[change])
}
