//! buildyard-test-architecture
