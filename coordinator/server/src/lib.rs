//! The coordinator: HTTP API, the driver loop around the scheduler, git mirrors, blobs, retention.
//!
//! [`serve`] runs it until it is told to end. [`Coordinator`] is the same without a socket: its router can be
//! called directly, which is how the tests do it.
//!
//! | module | what it is |
//! |---|---|
//! | `driver` | one task that owns the scheduler: decide, commit, then speak |
//! | `source` | git mirrors, and the task that reads pipeline files |
//! | `logs`, `blobs` | log bytes and artifact contents: checked, synced, then named by a row |
//! | `api`, `worker_api`, `routes` | what is served, in one table |
//! | `sentences`, `views`, `explain` | what is on record, as people read it; pure |
//! | `retention` | drops what is too old, and what no row names |
//!
//! What is not here: rules about runs and jobs (`buildyard-scheduler`), SQL (`buildyard-store-sqlite`), and
//! anything of how a worker does its work.

mod api;
mod app;
mod blobs;
mod clock;
pub mod config;
pub mod data_dir;
mod driver;
mod error;
mod explain;
mod extract;
mod listen;
mod logs;
mod metrics;
mod openapi;
pub mod process;
mod retention;
mod routes;
mod sentences;
mod source;
mod sse;
mod start;
mod turns;
mod views;
mod worker_api;

#[cfg(test)]
mod tests;

pub use config::{ConfigError, ConfigFile, CoordinatorConfig};
pub use data_dir::DataDirError;
pub use driver::DriverEnd;
pub use start::{Coordinator, ServeError, serve};
