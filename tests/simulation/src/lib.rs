//! buildyard-test-simulation
