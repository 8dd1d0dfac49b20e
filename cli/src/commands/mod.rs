//! One file for each noun or verb of the command line.

pub(crate) mod artifacts;
pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod explain;
pub(crate) mod images;
pub(crate) mod jobs;
pub(crate) mod live;
pub(crate) mod logs;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod summary;
pub(crate) mod trigger;
pub(crate) mod up;
pub(crate) mod watch;
pub(crate) mod whoami;
pub(crate) mod workers;

use crate::Context;
use crate::args::Command;
use crate::exit::Result;

/// Carries a command out.
pub(crate) async fn dispatch(context: &Context, command: Command) -> Result {
    match command {
        Command::Up(args) => up::run(context, args).await,
        Command::Down(args) => down::run(context, args).await,
        Command::Doctor(args) => doctor::run(context, args).await,
        Command::Serve(args) => serve::run(context, args).await,
        Command::Check(args) => check::run(context, args),
        Command::Status(args) => status::run(context, args).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Trigger(args) => trigger::run(context, args).await,
        Command::Watch(args) => watch::run(context, args).await,
        Command::Runs(args) => runs::run(context, args).await,
        Command::Jobs(args) => jobs::run(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::Explain(args) => explain::run(context, args).await,
        Command::Artifacts(args) => artifacts::run(context, args).await,
        Command::Workers(args) => workers::run(context, args).await,
        Command::Images(args) => images::run(context, args).await,
        Command::Whoami(args) => whoami::run(context, args).await,
        Command::Config(args) => config::run(context, args),
    }
}
