//! `buildyard-init` as it runs in a container: process 1 of a PID namespace, without an engine.
//!
//! These tests need root and `unshare`; without them each says so and ends.

mod attacker;
mod attacks;
mod channel;
mod harness;
mod limits;
mod steps;
