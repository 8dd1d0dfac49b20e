//! The whole farm as users run it: the real binary, real processes, real git, SQLite and container engine.
//!
//! Each test starts a farm of its own in a temporary folder and ends it; they run one after the other, since they
//! share the engine. Without an engine they skip and say so.

mod harness;

mod bad_input;
mod crashes;
mod outcomes;
mod processes;
