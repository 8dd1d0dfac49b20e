//! `buildyard doctor`

use buildyard_worker::host::doctor::{Check, Level, examine};
use clap::Args;

use super::serve;
use super::status::count;
use crate::Context;
use crate::exit::{self, CliError, Result};
use crate::output::{self, Tone};
use crate::terminal;

/// Says what this machine lacks.
#[derive(Debug, Args)]
#[command(after_help = "\
Needs no coordinator. Each line that is not `ok` is followed by the command that mends it.

Exit status: 0 jobs can run here, 1 something needed is missing.")]
pub(crate) struct DoctorArgs {}

/// Carries the command out.
pub(crate) async fn run(context: &Context, _: DoctorArgs) -> Result {
    let socket = serve::engine_socket(&serve::worker_settings(None)?.1);
    let checks = examine(&socket, &context.settings.data_dir.value).await;
    let lacks = checks.iter().any(|check| check.level == Level::Fail);
    exit::answer(tell(context, &checks), if lacks { Err(CliError::negative()) } else { Ok(()) })
}

fn tell(context: &Context, checks: &[Check]) -> Result {
    if context.ui.json() {
        return output::print_json(&checks);
    }
    checks.iter().try_for_each(|check| show(context, check))?;
    output::print(&format!("\n{}", verdict(checks)))
}

fn show(context: &Context, check: &Check) -> Result {
    let tone = match check.level {
        Level::Ok => Tone::Good,
        Level::Warn => Tone::Warn,
        Level::Fail => Tone::Bad,
    };
    let level = context.ui.paint(tone, &format!("{:<4}", check.level.to_string()));
    output::print(&format!("{level}  {:<13} {}", check.name, terminal::line(&check.found)))?;
    match &check.remedy {
        Some(remedy) => output::print(&format!("      {:<13} mend: {}", "", terminal::line(remedy))),
        None => Ok(()),
    }
}

fn verdict(checks: &[Check]) -> String {
    let of = |level| checks.iter().filter(|check| check.level == level).count();
    let number = |level, noun| count(u32::try_from(of(level)).unwrap_or(u32::MAX), noun);
    match of(Level::Fail) {
        0 if of(Level::Warn) == 0 => "jobs can run here".to_owned(),
        0 => format!("jobs can run here; {}", number(Level::Warn, "warning")),
        _ => format!("no jobs can run here: {} missing", number(Level::Fail, "thing")),
    }
}
