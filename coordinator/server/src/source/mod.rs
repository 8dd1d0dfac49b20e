//! Where commits come from: the repository that a trigger names, the bare mirror that keeps the commit, and
//! the task that reads the files of received runs.

pub(crate) mod git;
pub(crate) mod mirror;
pub(crate) mod resolve;
mod task;

pub(crate) use mirror::Mirrors;
pub(crate) use task::source_task;
