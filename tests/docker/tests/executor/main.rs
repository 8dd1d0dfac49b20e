//! The executor on a real engine, with real workspaces and the real init: each way of ending, and attacks from inside.
//!
//! Every test ends with a look for what is left: containers, networks, mounts.

#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test, as an assertion does")]

mod attacks;
mod endings;
mod farm;
mod namespaces;
mod outwards;
mod restart;
