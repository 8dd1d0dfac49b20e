//! buildyard-store-sqlite
