//! Holds the dependency rules of ARCHITECTURE.md by machine. Everything is in `tests/`.
