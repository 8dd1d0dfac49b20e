//! Tests on a real engine, in one binary.

mod attempt;
mod containers;
mod contract;
mod escape;
mod limits;
mod network;
mod pull;
