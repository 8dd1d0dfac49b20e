//! Tests over the router, with a real store in a folder of their own and a worker that speaks the protocol.

mod artifacts;
mod faults;
mod flow;
mod hostile;
mod http;
mod logs;
mod restart;
mod socket;
pub(crate) mod support;
