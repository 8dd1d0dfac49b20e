//! The scheduler from outside: inputs in, records and answers out.

mod farm;
mod invariants;
mod leases;
mod placement;
mod properties;
mod reports;
mod retries;
mod runs;
mod waiting;
mod workers;
