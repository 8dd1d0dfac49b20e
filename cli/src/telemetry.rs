//! What the long-running parts write about themselves: to standard error, or to a file that is rotated.

use std::io::IsTerminal;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::supervisor::logfile::LogFile;

/// Writes to standard error. `BUILDYARD_LOG` filters (`info` by default), `BUILDYARD_LOG_FORMAT=json` is for programs.
pub(crate) fn to_stderr() {
    install(std::io::stderr, std::io::stderr().is_terminal());
}

/// Writes to a file.
pub(crate) fn to_file(file: LogFile) {
    install(Mutex::new(file), false);
}

fn install<W>(writer: W, colour: bool)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_env("BUILDYARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour);
    let json = std::env::var_os("BUILDYARD_LOG_FORMAT").is_some_and(|format| format == "json");
    // A second subscriber in one process is refused, and the first goes on.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}
