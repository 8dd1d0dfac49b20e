//! `buildyard images`

use std::collections::BTreeMap;

use buildyard_types::api::WorkerView;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::Context;
use crate::client::Client;
use crate::exit::Result;
use crate::output::{self, Table};

/// Lists images.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    #[command(subcommand)]
    command: Option<ImagesCommand>,
}

#[derive(Debug, Subcommand)]
enum ImagesCommand {
    /// List the images that workers hold (the default)
    List,
}

#[derive(Debug, Serialize)]
struct ImageRow {
    name: String,
    workers: Vec<String>,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: ImagesArgs) -> Result {
    let (None | Some(ImagesCommand::List)) = args.command;
    let client = Client::connect(&context.settings)?;
    let workers: Vec<WorkerView> = client.get(&["workers"], &[]).await?;
    let rows = rows(&workers);
    if context.ui.json() {
        return output::print_json(&rows);
    }
    if rows.is_empty() {
        return output::print("no worker reports an image");
    }
    let mut table = Table::new(&["IMAGE", "WORKERS"]);
    for row in rows {
        table.row([row.name, row.workers.join(", ")]);
    }
    output::print(&table.render())
}

fn rows(workers: &[WorkerView]) -> Vec<ImageRow> {
    let mut images: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for worker in workers {
        for image in &worker.images {
            images.entry(image).or_default().push(worker.name.clone());
        }
    }
    images.into_iter().map(|(name, workers)| ImageRow { name: name.to_owned(), workers }).collect()
}
