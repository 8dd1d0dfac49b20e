//! `buildyard status`

use buildyard_types::api::StatusView;
use buildyard_types::size::rounded;
use clap::Args;

use crate::Context;
use crate::client::Client;
use crate::exit::Result;
use crate::output::{self, Tone};
use crate::terminal;

/// Shows the farm at a glance.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  buildyard status
  buildyard status --output json")]
pub(crate) struct StatusArgs {}

/// Carries the command out.
pub(crate) async fn run(context: &Context, _: StatusArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    let status: StatusView = client.get(&["status"], &[]).await?;
    if context.ui.json() {
        return output::print_json(&status);
    }
    for line in lines(&status, client.url()) {
        output::print(&terminal::line(&line))?;
    }
    for warning in &status.warnings {
        let warning = terminal::line(&format!("warning: {warning}"));
        output::print(&context.ui.paint(Tone::Warn, &warning))?;
    }
    Ok(())
}

fn lines(status: &StatusView, url: &str) -> [String; 4] {
    [
        format!("coordinator  {url}, version {}, up for {}", status.version, status.uptime_ms),
        format!("workers      {} of {} answer", status.workers_fresh, status.workers_known),
        format!(
            "work         {} active, jobs: {} running, {} queued, {} waiting",
            count(status.runs_active, "run"),
            status.jobs_running,
            status.jobs_queued,
            status.jobs_waiting
        ),
        format!("disk         {} free for the coordinator's data", rounded(status.disk_free)),
    ]
}

/// `1 run`, `2 runs`
pub(crate) fn count(number: u32, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
