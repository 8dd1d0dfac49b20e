//! `buildyard`: the one binary. It runs the parts of the farm and is the way to talk to it.
//!
//! Everything here is thin: what is decided, is decided in the pure crates; what is done, in the coordinator's
//! and the worker's. This crate reads the command line and configuration, calls them, and says what happened.

mod args;
mod beneath;
mod checkout;
mod client;
mod commands;
mod config;
mod exit;
mod local;
mod logs;
mod output;
mod pipelines;
mod selector;
mod supervisor;
mod target;
mod telemetry;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::exit::{CliError, Kind, Result};
use crate::output::{Format, Ui};

/// What every command gets.
pub(crate) struct Context {
    /// The configuration, all layers laid over each other.
    pub(crate) settings: config::Settings,
    /// What is known of the outputs.
    pub(crate) ui: Ui,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.global.output == Format::Json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(json),
    }
}

/// Help and version go to standard output with success, mistakes to standard error with code 2; as a problem document
/// where programs read the errors.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && wants_json(std::env::args_os()) {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let said: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        return CliError::usage(said.join(" ")).hint("see `buildyard --help`").report(true);
    }
    // A closed output is no reason to fail on the way out.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Kind::Usage.code()))
}

/// Whether a command line that cannot be read asks for JSON.
fn wants_json(arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut is_value = false;
    for argument in arguments {
        if argument == "--output=json" || (is_value && argument == "json") {
            return true;
        }
        is_value = argument == "--output";
    }
    false
}

fn run(cli: Cli) -> Result {
    let ui = Ui::detect(cli.global.output);
    let settings = config::load(cli.global.layer())?;
    let context = Context { settings, ui };
    let runtime = runtime(cli.command.is_busy())?;
    let handles_interrupts = cli.command.handles_interrupts();
    let result = runtime.block_on(async {
        let command = commands::dispatch(&context, cli.command);
        if handles_interrupts {
            return command.await;
        }
        tokio::select! {
            result = command => result,
            _ = tokio::signal::ctrl_c() => Err(CliError::silent(Kind::Interrupted)),
        }
    });
    // A blocking call that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    result
}

/// The parts of the farm use every processor; commands that only talk need one thread.
fn runtime(is_busy: bool) -> Result<tokio::runtime::Runtime> {
    let mut builder = if is_busy {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build();
    runtime.map_err(|error| CliError::farm("cannot start the runtime").because(error))
}
