//! What this host offers to the farm, and what is missing on it.
