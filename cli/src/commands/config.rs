//! `buildyard config`

use clap::{Args, Subcommand};

use crate::Context;
use crate::exit::Result;
use crate::output::{self, Table};

/// Shows the configuration.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: Option<ConfigCommand>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show every value (the default)
    Show(ShowArgs),
}

/// How to show it.
#[derive(Debug, Args)]
#[command(after_help = "\
Layers, the nearest wins: flags, BUILDYARD_* variables, $XDG_CONFIG_HOME/buildyard/config.toml,
/etc/buildyard/cli.toml, defaults. The files hold the keys that are shown here.")]
pub(crate) struct ShowArgs {
    /// Say where each value came from
    #[arg(long)]
    origin: bool,
}

/// Carries the command out.
pub(crate) fn run(context: &Context, args: ConfigArgs) -> Result {
    let show = match args.command {
        Some(ConfigCommand::Show(show)) => show,
        None => args.show,
    };
    let entries = context.settings.entries();
    if context.ui.json() {
        return output::print_json(&entries);
    }
    let headings: &[&str] = if show.origin { &["KEY", "VALUE", "ORIGIN"] } else { &["KEY", "VALUE"] };
    let mut table = Table::new(headings);
    for entry in entries {
        let value = entry.value.unwrap_or_else(|| "(this machine's)".into());
        let mut row = vec![entry.key.to_owned(), value];
        row.extend(show.origin.then_some(entry.origin));
        table.row(row);
    }
    output::print(&table.render())
}
