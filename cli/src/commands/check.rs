//! `buildyard check`

use std::path::PathBuf;

use buildyard_types::job::{Diagnostic, Pipeline};
use clap::Args;
use serde::Serialize;

use crate::Context;
use crate::checkout;
use crate::exit::{self, CliError, Result};
use crate::output::{self, Tone};
use crate::pipelines::{self, Compiled};
use crate::terminal;

/// Checks pipeline files.
#[derive(Debug, Args)]
#[command(after_help = "\
Every mistake is shown at once, with its place and, where one is near, what was probably meant.
This is the coordinator's own compiler; what only the coordinator knows (whether a worker has the
labels, whether an image exists) it says on the run.

Examples:
  buildyard check                   pipeline.toml and .buildyard/*.toml of the checkout
  buildyard check ci/nightly.toml

Exit status: 0 no mistakes, 1 mistakes.")]
pub(crate) struct CheckArgs {
    /// Files to check; those of the checkout by default
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// `--output json`
#[derive(Debug, Serialize)]
struct Checked<'c> {
    file: &'c str,
    ok: bool,
    pipeline: Option<&'c Pipeline>,
    diagnostics: &'c [Diagnostic],
}

/// Carries the command out.
pub(crate) fn run(context: &Context, args: CheckArgs) -> Result {
    let compiled = if args.files.is_empty() {
        pipelines::compile_checkout(&checkout::root_or_here()?)?
    } else {
        let compile = |path: &PathBuf| pipelines::compile_file(path, path.display().to_string());
        args.files.iter().map(compile).collect::<Result<Vec<Compiled>>>()?
    };
    let printed = if context.ui.json() {
        output::print_json(&compiled.iter().map(as_json).collect::<Vec<_>>())
    } else {
        compiled.iter().try_for_each(|one| show(context, one))
    };
    let is_good = compiled.iter().all(|one| one.result.is_ok());
    exit::answer(printed, if is_good { Ok(()) } else { Err(CliError::negative()) })
}

fn as_json(compiled: &Compiled) -> Checked<'_> {
    let (pipeline, diagnostics) = match &compiled.result {
        Ok(pipeline) => (Some(pipeline), &[][..]),
        Err(diagnostics) => (None, diagnostics.as_slice()),
    };
    Checked { file: &compiled.file, ok: pipeline.is_some(), pipeline, diagnostics }
}

fn show(context: &Context, compiled: &Compiled) -> Result {
    match &compiled.result {
        Ok(pipeline) => {
            let names: Vec<&str> = pipeline.jobs.iter().map(|job| job.name.as_str()).collect();
            let jobs = super::status::count(u32::try_from(names.len()).unwrap_or(u32::MAX), "job");
            let ok = context.ui.paint(Tone::Good, "ok");
            let rest = terminal::line(&format!("{jobs}: {}", names.join(", ")));
            output::print(&format!("{}: {ok}, {rest}", terminal::line(&compiled.file)))
        }
        Err(diagnostics) => output::print(&terminal::block(&buildyard_pipelines::render(diagnostics))),
    }
}
