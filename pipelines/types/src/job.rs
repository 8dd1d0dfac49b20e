//! What one job is: the compiler writes it, the scheduler places it, the worker carries it out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::label::LabelExpr;
use crate::size::ByteSize;
use crate::time::Millis;

/// Everything that is known of a job before it runs. Made by the compiler, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Unique within its run.
    pub name: String,
    /// The image as the file names it, a tag or a digest.
    pub image: String,
    /// What its worker must offer.
    pub labels: LabelExpr,
    /// Names of jobs that must pass first.
    pub needs: Vec<String>,
    /// Variables of every step. A step's own win.
    pub env: BTreeMap<String, String>,
    /// Run one after the other; the first that fails ends the job.
    pub steps: Vec<StepSpec>,
    /// What the job may use.
    pub resources: Resources,
    /// How long it may run, its steps together.
    pub timeout_ms: Millis,
    /// How long it may wait for a worker.
    pub queue_timeout_ms: Millis,
    /// What is kept of its workspace.
    pub artifacts: Vec<ArtifactSpec>,
    /// Which network its container sees.
    pub network: NetworkMode,
    /// As whom its steps run.
    pub user: JobUser,
    /// How the commit comes into the workspace.
    pub checkout: CheckoutSpec,
}

/// One command of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpec {
    /// Unique within its job.
    pub name: String,
    /// The script handed to the shell.
    pub run: String,
    /// Which shell.
    pub shell: Shell,
    /// Folder below the workspace in which it starts; empty for the workspace itself.
    pub dir: String,
    /// Variables of this step alone.
    pub env: BTreeMap<String, String>,
    /// How long the step may run; the job's limit holds all the same.
    pub timeout_ms: Option<Millis>,
}

/// The shell of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shell {
    /// `sh -e`
    Sh,
    /// `bash -eo pipefail`
    Bash,
}

/// What an attempt may use at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// In thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory with page cache of its own writing, and no swap beyond it.
    pub memory: ByteSize,
    /// Processes and threads.
    pub pids: u64,
    /// Workspace, home and what is written elsewhere in the container.
    pub disk: ByteSize,
}

/// Files to keep when the job passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactSpec {
    /// Unique within its job.
    pub name: String,
    /// Globs below the workspace; a leading `!` takes out again.
    pub paths: Vec<String>,
    /// Whether finding no file fails the job.
    pub required: bool,
    /// How long they are kept.
    pub keep_ms: Millis,
}

/// Which network the container of an attempt sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Its own loopback and nothing else.
    None,
    /// Outwards only: neither the host, nor neighbours, nor the coordinator.
    Egress,
    /// The worker's own network. Only where the worker's policy allows it.
    Host,
}

/// As whom the steps of a job run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobUser {
    /// The image's numeric user if it names one, else 1000 `build`.
    Build,
    /// uid 0 with a small set of capabilities. Only where the worker's policy allows it.
    Root,
}

/// How the commit comes into the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckoutSpec {
    /// Commits of history to fetch; `None` is all of them.
    pub depth: Option<u32>,
    /// Whether tags come along.
    pub tags: bool,
}

/// A pipeline after compilation: its name and its jobs in file order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    /// The name that people see.
    pub name: String,
    /// The file it was read from, as a path in the repository.
    pub file: String,
    /// Its jobs. Needs name jobs of this list and form no cycle.
    pub jobs: Vec<JobSpec>,
}

/// One thing that is wrong with a pipeline file, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Path in the repository.
    pub file: String,
    /// Counted from 1; 0 where the whole file is meant.
    pub line: u32,
    /// Counted in characters from 1.
    pub column: u32,
    /// How many characters of that line are meant; at least 1 when a line is named, and bounded by the compiler.
    pub length: u32,
    /// The text of that line; empty where it is too long to be shown.
    pub source: String,
    /// Stable name of the kind of mistake: `unknown-key`.
    pub code: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// How to mend it, where that is known: "did you mean `needs`?"
    pub help: Option<String>,
}

impl std::fmt::Display for Diagnostic {
    /// The frame that people read: message, place, the line, the part underlined, the help.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if self.line == 0 {
            write!(f, "\n  --> {}", self.file)?;
        } else {
            let gutter = self.line.to_string().len();
            let blank = " ".repeat(gutter);
            write!(f, "\n{blank}--> {}:{}:{}", self.file, self.line, self.column)?;
            // An empty line is shown, one that was too long is not: underlining it would be an empty gesture.
            if !self.source.is_empty() || (self.column == 1 && self.length == 1) {
                write!(f, "\n{blank} |\n{} | {}", self.line, self.source)?;
                let indent: String = self
                    .source
                    .chars()
                    .take(self.column.saturating_sub(1) as usize)
                    .map(|c| if c == '\t' { '\t' } else { ' ' })
                    .collect();
                write!(f, "\n{blank} | {indent}{}", "^".repeat(self.length.max(1) as usize))?;
            }
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}
