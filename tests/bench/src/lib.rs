//! buildyard-test-bench
