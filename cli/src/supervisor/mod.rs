//! Watches over the parts of the farm on this machine: each is a process of its own, and killing one starts that one
//! again and touches no other.

pub(crate) mod logfile;
pub(crate) mod part;
pub(crate) mod policy;
pub(crate) mod record;
mod supervise;

pub(crate) use supervise::{Plan, supervise};
