//! buildyard-worker
