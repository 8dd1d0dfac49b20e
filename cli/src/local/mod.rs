//! `buildyard run` without a coordinator: the farm's own scheduler with one worker, this machine, and the worker's
//! own executor.

pub(crate) mod drive;
pub(crate) mod farm;
pub(crate) mod output;
