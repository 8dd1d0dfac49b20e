//! `buildyard images`

use buildyard_types::api::ImageView;
use clap::{Args, Subcommand};

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

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: ImagesArgs) -> Result {
    let (None | Some(ImagesCommand::List)) = args.command;
    let client = Client::connect(&context.settings)?;
    let images: Vec<ImageView> = client.get(&["images"], &[]).await?;
    if context.ui.json() {
        return output::print_json(&images);
    }
    if images.is_empty() {
        return output::print("no worker reports an image");
    }
    let mut table = Table::new(&["IMAGE", "WORKERS"]);
    for image in images {
        table.row([image.name, image.workers.join(", ")]);
    }
    output::print(&table.render())
}
