//! `buildyard runs`

use buildyard_types::RunId;
use buildyard_types::api::{RunList, RunView};
use clap::{Args, Subcommand};
use reqwest::Method;

use super::jobs;
use crate::Context;
use crate::client::Client;
use crate::exit::{CliError, Result};
use crate::output::{self, Change, Table};
use crate::selector::Selectors;
use crate::target;
use crate::terminal;

/// Runs that are asked for at once where a selector may leave few of them, and how often.
const PAGE: u32 = 200;
const PAGES: usize = 10;

/// Lists, shows and cancels runs.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RunsArgs {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// List runs, newest first (the default)
    List(ListArgs),
    /// Show a run and its jobs
    Show(IdArgs),
    /// Cancel a run
    Cancel(CancelArgs),
}

/// Which runs to list.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard runs
  buildyard runs --commit HEAD
  buildyard runs -l state=failed -l ref=main
  buildyard runs list --limit 5 --output json

Keys of -l: state (or verdict), pipeline, file, repository, commit, ref. At most 2,000 runs are
looked through at once; standard error says how to go on behind them.")]
pub(crate) struct ListArgs {
    /// How many at most
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Only runs older than this one
    #[arg(long, value_name = "RUN")]
    before: Option<RunId>,
    /// Only runs of this repository
    #[arg(long, value_name = "REPO")]
    repository: Option<String>,
    /// Only runs of this commit, branch or tag of the checkout
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    #[command(flatten)]
    selectors: Selectors,
}

/// Which run.
#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// A run, or a commit, branch or tag of the checkout; the run of HEAD by default
    id: Option<String>,
}

/// Which run, and whether to do it.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// A run, or a commit, branch or tag of the checkout
    id: String,
    /// Say what would be cancelled and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: RunsArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    match args.command {
        None => list(context, &client, args.list).await,
        Some(RunsCommand::List(args)) => list(context, &client, args).await,
        Some(RunsCommand::Show(args)) => show(context, &client, args.id.as_deref()).await,
        Some(RunsCommand::Cancel(args)) => cancel(context, &client, args).await,
    }
}

async fn list(context: &Context, client: &Client, args: ListArgs) -> Result {
    args.selectors.check::<RunView>()?;
    let list = find(client, &args).await?;
    if context.ui.json() {
        return output::print_json(&list);
    }
    if list.runs.is_empty() && !args.selectors.is_empty() {
        output::print("no run has what -l asks for")?;
    } else if list.runs.is_empty() {
        return output::print("no runs; start one with `buildyard trigger REPO-PATH`");
    }
    let now = output::now();
    let mut table = Table::new(&["RUN", "PIPELINE", "COMMIT", "REF", "STATE", "WHEN", "WHAT"]);
    for run in &list.runs {
        table.row([
            run.id.to_string(),
            run.pipeline.clone(),
            output::short_commit(&run.commit),
            run.ref_name.as_deref().map(output::short_ref).unwrap_or_default().to_owned(),
            output::run_word(run).1,
            output::ago(run.created_at, now),
            run.sentence.clone(),
        ]);
    }
    if !list.runs.is_empty() {
        output::print(&table.render())?;
    }
    if let Some(next) = list.next {
        let same = if args.selectors.is_empty() { "buildyard runs" } else { "the same with" };
        context.ui.progress(&format!("older ones: {same} --before {next}"));
    }
    Ok(())
}

/// Looks through the runs, newest first, until as many as are wanted were found, or enough were looked at.
async fn find(client: &Client, args: &ListArgs) -> Result<RunList> {
    let commit = args.commit.as_deref().map(target::commit_named).transpose()?;
    let wanted = args.limit as usize;
    let page = if args.selectors.is_empty() { args.limit } else { PAGE };
    let mut found = RunList { runs: Vec::new(), next: args.before };
    for _ in 0..PAGES {
        let mut query = vec![("limit", page.to_string())];
        query.extend(found.next.map(|run| ("before", run.to_string())));
        query.extend(args.repository.clone().map(|name| ("repository", name)));
        query.extend(commit.clone().map(|commit| ("commit", commit)));
        let list: RunList = client.get(&["runs"], &query).await?;
        found.next = list.next;
        found.runs.extend(list.runs.into_iter().filter(|run| args.selectors.wants(run)));
        if found.runs.len() > wanted {
            // What was cut off comes with the next page.
            found.runs.truncate(wanted);
            found.next = found.runs.last().map(|run| run.id);
        }
        if found.runs.len() == wanted || found.next.is_none() || args.selectors.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// The runs that an ID means; for commands about whole runs.
async fn runs_meant(client: &Client, id: Option<&str>) -> Result<Vec<RunId>> {
    let target = target::resolve(client, id).await?;
    match target.job() {
        None => Ok(target.runs()),
        Some(job) => Err(CliError::usage(format!("{} is not a run", id.unwrap_or_default()))
            .hint(format!("it belongs to {}", job.run))),
    }
}

async fn show(context: &Context, client: &Client, id: Option<&str>) -> Result {
    let mut views = Vec::new();
    for run in runs_meant(client, id).await? {
        views.push(target::run(client, run).await?);
    }
    if context.ui.json() {
        return output::print_one_or_several(&views);
    }
    for (index, run) in views.iter().enumerate() {
        if index > 0 {
            output::print("")?;
        }
        show_run(context, run)?;
    }
    Ok(())
}

fn show_run(context: &Context, run: &RunView) -> Result {
    let title = terminal::line(&format!("{} {}: ", run.id, run.pipeline));
    let sentence = context.ui.paint(output::run_word(run).0, &terminal::line(&run.sentence));
    output::print(&format!("{title}{sentence}"))?;
    let ref_name = run.ref_name.as_deref().map(output::short_ref);
    let of = ref_name.map(|name| format!(" ({name})")).unwrap_or_default();
    let mut facts = vec![
        format!("repository  {}", run.repository),
        format!("commit      {}{of}", run.commit),
        format!("file        {}", run.file),
        format!("images      {}", run.images),
        format!("accepted    {}", output::utc(run.created_at)),
    ];
    if let Some(end) = run.finished_at {
        facts.push(format!("ended       {}, after {}", output::utc(end), end.since(run.created_at)));
    }
    for fact in facts {
        output::print(&format!("  {}", terminal::line(&fact)))?;
    }
    for diagnostic in &run.diagnostics {
        output::print(&format!("\n{}", terminal::block(&diagnostic.to_string())))?;
    }
    if !run.jobs.is_empty() {
        output::print("")?;
        output::print(&jobs::table(&run.jobs).render())?;
    }
    Ok(())
}

async fn cancel(context: &Context, client: &Client, args: CancelArgs) -> Result {
    let mut changes = Vec::new();
    for run in runs_meant(client, Some(&args.id)).await? {
        let subject = run.to_string();
        let sentence = if args.dry_run {
            let view = target::run(client, run).await?;
            format!("would cancel {subject} ({}): {}", view.pipeline, view.sentence)
        } else {
            client.act(Method::POST, &["runs", &subject, "cancel"]).await?;
            format!("{subject} is being cancelled; `buildyard watch {subject}` shows its end")
        };
        let change = Change { subject, change: "cancel", dry_run: args.dry_run, sentence };
        context.ui.changed(&change);
        changes.push(change);
    }
    context.ui.all_changed(&changes)
}
