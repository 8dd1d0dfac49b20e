//! Reading logs: the stream of an attempt, and the form in which people read it.

pub(crate) mod printer;
pub(crate) mod raw;
pub(crate) mod reader;
