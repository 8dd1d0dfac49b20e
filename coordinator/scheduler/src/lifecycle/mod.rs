//! One file per lifecycle. A lifecycle is one enum, each state carries only what is true in it.

pub mod attempt;
pub mod job;
pub mod run;
pub mod worker;
