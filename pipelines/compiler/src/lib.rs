//! From `pipeline.toml` to a validated pipeline, or to diagnostics that say everything that is wrong at once.
//!
//! [`compile`] takes the bytes of one file and gives a [`Pipeline`](buildyard_types::job::Pipeline), in which every
//! default is filled in and whose needs form no cycle. It reads no file, clock or environment; any input, however
//! hostile, is answered in time and memory that its length bounds.
//!
//! | module | what it is |
//! |---|---|
//! | `document` | TOML as a tree in file order, with places; goes on after mistakes |
//! | `syntax` | words for what is no TOML |
//! | `reader`, `values`, `names` | typed access to the tree; the forms of durations, images, paths, … |
//! | `job`, `pipeline`, `graph` | the meaning: settings, steps, needs, artifacts; cycles |
//! | [`reference`] | every key in one table: what is accepted, suggested and documented |
//! | [`defaults`], [`limits`] | what holds when nothing is written, and how much may be written |
//! | `problem`, `render` | mistakes, their places, and how they are shown |

pub mod defaults;
mod document;
mod files;
mod graph;
mod job;
pub mod limits;
mod names;
mod pipeline;
mod problem;
mod reader;
pub mod reference;
mod render;
mod suggest;
mod syntax;
mod values;

pub use files::{FOLDER, MAIN_FILE, TooManyPipelines, check_count, is_pipeline, pipeline_files};
pub use graph::order;
pub use pipeline::{Understood, compile, understand};
pub use problem::Code;
pub use render::{render, summary};
