//! `buildyard trigger`

use std::path::Path;

use buildyard_types::RunId;
use buildyard_types::api::{TriggerRequest, TriggerResponse};
use buildyard_types::time::HumanDuration;
use clap::Args;

use super::watch;
use crate::Context;
use crate::client::{Client, patiently};
use crate::exit::{CliError, Result};
use crate::output;
use crate::terminal;

/// Starts a run of a repository on the farm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard trigger . --follow
  buildyard trigger /srv/git/cjson.git --revision v1.2.0
  buildyard trigger . --key nightly-2026-01-31   again with the same key: the same run")]
pub(crate) struct TriggerArgs {
    /// Path of a git repository on the coordinator's host
    #[arg(value_name = "REPO-PATH")]
    repository: String,
    /// Branch, tag or commit; the repository's HEAD by default
    #[arg(long, short)]
    revision: Option<String>,
    /// Watch the run to its end; the exit status is then the verdict
    #[arg(long, short)]
    follow: bool,
    /// A name for this request, at most 64 characters: asking again with it starts nothing new
    #[arg(long)]
    key: Option<String>,
    /// With --follow: give up after this long, with exit status 6; the run goes on
    #[arg(long, value_name = "DURATION", requires = "follow")]
    timeout: Option<HumanDuration>,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: TriggerArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    let request = TriggerRequest {
        repository: absolute(&args.repository)?,
        revision: args.revision,
        // A key of its own makes the request safe to send again when the answer is lost.
        key: Some(args.key.unwrap_or_else(|| format!("cli-{:032x}", rand::random::<u128>()))),
    };
    let (follow, timeout) = (args.follow, args.timeout);
    watch::within(timeout, start(context, &client, &request, follow)).await
}

async fn start(context: &Context, client: &Client, request: &TriggerRequest, follow: bool) -> Result {
    let response: TriggerResponse = patiently(|| client.post(&["runs"], request)).await?;
    for run in &response.runs {
        let started = format!("{} {}: commit {}", run.id, run.pipeline, output::short_commit(&run.commit));
        match (follow, context.ui.json()) {
            (true, _) => context.ui.progress(&started),
            (false, true) => {}
            (false, false) => output::print(&terminal::line(&started))?,
        }
    }
    if follow {
        let runs: Vec<RunId> = response.runs.iter().map(|run| run.id).collect();
        return watch::follow(context, client, &runs).await;
    }
    if context.ui.json() {
        return output::print_json(&response);
    }
    if let Some(run) = response.runs.first() {
        context.ui.progress(&format!("follow it: buildyard watch {}", run.id));
    }
    Ok(())
}

/// A path means the same to the coordinator as here, since both are on one host. An absolute one that cannot be
/// seen from here is left to the coordinator, which may see more.
fn absolute(repository: &str) -> Result<String> {
    let path = Path::new(repository);
    let absolute = match path.canonicalize() {
        Ok(absolute) => absolute,
        Err(_) if path.is_absolute() => path.to_owned(),
        Err(error) => {
            return Err(CliError::usage(format!("there is no repository at {repository}"))
                .because(error)
                .hint("name the path of a git repository on the coordinator's host"));
        }
    };
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| CliError::usage(format!("the path {} is not UTF-8", Path::new(&path).display())))
}
