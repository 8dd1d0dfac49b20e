//! buildyard-coordinator
