//! buildyard-init
