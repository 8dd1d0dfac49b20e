//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    artifacts, check, config, doctor, down, explain, images, jobs, logs, run, runs, serve, status, trigger,
    up, watch, whoami, workers,
};
use crate::config::Layer;
use crate::output::Format;

const AFTER_HELP: &str = "\
Getting started:
  buildyard doctor                  what is missing on this machine
  buildyard up                      start coordinator and worker here
  buildyard check                   is my pipeline.toml right?
  buildyard run                     run it here, without the farm
  buildyard trigger . --follow      run it on the farm and wait for the verdict

An ID is a run (42), a job (job-42-3, 42/test), an attempt (att-42-3-1), or a commit, branch
or tag of the checkout. Left out, it means the run of HEAD.

Exit status: 0 ok, 1 negative verdict, 2 usage, 3 coordinator unreachable, 4 refused by policy
or permission, 5 farm fault or could not determine, 6 --timeout ran out, 130 interrupted.";

/// A build farm: every job in a throwaway container, every wait and failure explained.
#[derive(Debug, Parser)]
#[command(name = "buildyard", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
#[command(max_term_width = 100)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// `text` for people, `json` for programs: the API's views; errors are problem documents then
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    #[arg(hide_possible_values = true)]
    pub(crate) output: Format,
    /// URL of the coordinator; this machine's by default [env: BUILDYARD_COORDINATOR]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) coordinator: Option<String>,
    /// File of the bearer token; this machine's administrator's by default [env: BUILDYARD_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where this machine's farm keeps its data [env: BUILDYARD_DATA_DIR] [default: /var/lib/buildyard]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Global {
    /// The flags as a layer of the configuration.
    pub(crate) fn layer(&self) -> Layer {
        Layer {
            coordinator: self.coordinator.clone(),
            token_file: self.token_file.clone(),
            data_dir: self.data_dir.clone(),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the farm on this machine: coordinator and worker, watched over and restarted
    Up(up::UpArgs),
    /// Stop the farm of this machine and wait until nothing of it is left
    Down(down::DownArgs),
    /// What this machine lacks for the farm, and the command that mends it
    Doctor(doctor::DoctorArgs),
    /// The farm at a glance
    Status(status::StatusArgs),
    /// Run one part of the farm in the foreground
    Serve(serve::ServeArgs),
    /// Check pipeline files with the coordinator's own compiler
    Check(check::CheckArgs),
    /// Run jobs of this checkout here, with the worker's own executor and without the farm
    Run(run::RunArgs),
    /// Start a run of a repository on the farm
    Trigger(trigger::TriggerArgs),
    /// Watch a run to its end; the exit status is the verdict
    Watch(watch::WatchArgs),
    /// List, show and cancel runs
    Runs(runs::RunsArgs),
    /// List, show and cancel the jobs of a run
    Jobs(jobs::JobsArgs),
    /// Print logs
    Logs(logs::LogsArgs),
    /// Why something waits, failed or was refused, and what to do next
    Explain(explain::ExplainArgs),
    /// List and download what jobs kept
    Artifacts(artifacts::ArtifactsArgs),
    /// Invite, list, cordon and remove workers
    Workers(workers::WorkersArgs),
    /// List the images that workers hold
    Images(images::ImagesArgs),
    /// Which coordinator and token are used
    Whoami(whoami::WhoamiArgs),
    /// Show the configuration
    Config(config::ConfigArgs),
}

impl Command {
    /// Whether the command ends itself in good order when it is interrupted.
    pub(crate) fn handles_interrupts(&self) -> bool {
        matches!(self, Command::Serve(_) | Command::Run(_))
            || matches!(self, Command::Up(args) if args.foreground)
    }

    /// Whether the command does the work of a part of the farm.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Command::Serve(args) => args.is_busy(),
            other => matches!(other, Command::Run(_)),
        }
    }
}
