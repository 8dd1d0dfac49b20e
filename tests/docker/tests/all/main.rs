//! Tests on a real engine, in one binary.

mod contract;
