//! The worker: it carries out attempts in throwaway containers and tells the coordinator what became of them.
//!
//! What to do is decided by `buildyard-session`; here it is done. Only this crate and the inspector's facts
//! know Docker.

pub mod engine;
pub mod host;
pub mod image;
pub mod network;
pub mod profile;
pub mod workspace;
