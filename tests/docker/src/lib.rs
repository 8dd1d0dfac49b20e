//! buildyard-test-docker
