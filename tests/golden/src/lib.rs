//! buildyard-test-golden
