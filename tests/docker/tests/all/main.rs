//! Tests on a real engine, in one binary.

mod containers;
mod contract;
mod network;
