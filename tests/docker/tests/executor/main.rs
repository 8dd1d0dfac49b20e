//! The executor on a real engine, with real workspaces and the real init: each way of ending, and attacks from inside.
//!
//! Every test ends with a look for what is left: containers, networks, mounts.

mod attacks;
mod endings;
mod farm;
mod restart;
