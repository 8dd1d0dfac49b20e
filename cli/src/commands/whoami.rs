//! `buildyard whoami`

use buildyard_types::api::StatusView;
use clap::Args;
use serde::Serialize;

use crate::Context;
use crate::client::Client;
use crate::exit::Result;
use crate::output;
use crate::terminal;

/// Says which coordinator and token are used, after asking whether the token is good.
#[derive(Debug, Args)]
pub(crate) struct WhoamiArgs {}

#[derive(Debug, Serialize)]
struct Whoami<'w> {
    coordinator: &'w str,
    version: &'w str,
    token_file: &'w str,
    role: &'static str,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, _: WhoamiArgs) -> Result {
    let client = Client::connect(&context.settings)?;
    let status: StatusView = client.get(&["status"], &[]).await?;
    // Every token that may read the status is an administrator's; other kinds are workers' own.
    let answer = Whoami {
        coordinator: client.url(),
        version: &status.version,
        token_file: client.token_origin(),
        role: "admin",
    };
    if context.ui.json() {
        return output::print_json(&answer);
    }
    output::print(&terminal::line(&format!(
        "admin of {} (version {}), by the token in {}",
        answer.coordinator, answer.version, answer.token_file
    )))
}
