//! The words of Buildyard as data: ids, times, sizes, labels, outcomes, job definitions and wire messages.
//!
//! This crate holds values only. It reads no file, clock or environment and makes no random number; whoever
//! uses it hands those in. What a *rule* says about these values lives in `buildyard-scheduler` (the farm),
//! `buildyard-session` (a worker) and `buildyard-pipelines` (a pipeline file).

pub mod api;
pub mod bounds;
pub mod id;
pub mod job;
pub mod label;
pub mod log;
pub mod outcome;
pub mod size;
pub mod time;
pub mod worker;

pub use id::{AttemptId, AttemptNumber, Epoch, Fence, JobId, JobIndex, RunId, WorkerId};
pub use job::JobSpec;
pub use label::{LabelExpr, Labels};
pub use outcome::{Fault, Outcome, Verdict};
pub use size::ByteSize;
pub use time::{Millis, Timestamp};
