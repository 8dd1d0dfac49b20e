//! What the PID 1 of every attempt and its worker say to each other.
//!
//! The program `buildyard-init` itself is the binary of this package. It is mounted read-only into each
//! container, so the package stays small: its only dependency is `libc`.

pub mod protocol;
