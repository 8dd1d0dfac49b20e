//! Tests over the router, with a real store.
