//! buildyard-pipelines
