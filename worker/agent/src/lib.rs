//! The worker: it carries out attempts in throwaway containers and tells the coordinator what became of them.
//!
//! What to do is decided by `buildyard-session`; here it is done. Only this crate and the inspector's facts
//! know Docker.

pub mod artifacts;
pub mod backoff;
pub mod cgroup;
pub mod channel;
pub mod client;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod data;
pub mod engine;
pub mod executor;
pub mod host;
pub mod image;
pub mod init_binary;
pub mod journal;
pub mod local;
pub mod network;
pub mod profile;
pub mod source;
pub mod spool;
#[cfg(test)]
mod testing;
pub mod upload;
pub mod workspace;
