//! buildyard
fn main() {}
