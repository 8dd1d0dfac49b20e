//! What a job gets when its file does not say. Each value has its reason; the server may only tighten them.

use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Resources, Shell};
use buildyard_types::{ByteSize, Millis};

/// An hour: longer than nearly every build, short enough that a hung one frees its worker the same morning.
pub const JOB_TIMEOUT: Millis = Millis::from_mins(60);
/// Two hours: a job that found no worker in that time waits for a person, not for a worker.
pub const QUEUE_TIMEOUT: Millis = Millis::from_mins(120);
/// One processor: most compilers are not told to use more, and who writes `make -j4` knows to ask for four.
pub const CPU_MILLIS: u64 = 1_000;
/// 2 GiB: enough for a C++ or Rust build with one processor; more would halve what a worker can run.
pub const MEMORY: ByteSize = ByteSize::from_gib(2);
/// 512: a parallel build needs some dozens of processes, a fork bomb all it can get.
pub const PIDS: u64 = 512;
/// 10 GiB: a checkout with its build tree; the workspace is sparse, so what is unused costs nothing.
pub const DISK: ByteSize = ByteSize::from_gib(10);
/// 30 days: as long as people ask about a build.
pub const KEEP: Millis = Millis::from_mins(30 * 24 * 60);
/// Outwards only: builds fetch dependencies, and nothing of the farm may be in their reach.
pub const NETWORK: NetworkMode = NetworkMode::Egress;
/// Not root: what a build does by accident stays in its own files.
pub const USER: JobUser = JobUser::Build;
/// `sh`, since every image that can run a job has it; `bash` it may lack.
pub const SHELL: Shell = Shell::Sh;
/// One commit without tags: what is built is the commit, and history costs time with every attempt.
pub const CHECKOUT: CheckoutSpec = CheckoutSpec { depth: Some(1), tags: false };
/// The name of the only step of a job that is written with `run`.
pub const ONLY_STEP_NAME: &str = "run";

/// What a job may use when nothing is written.
pub fn resources() -> Resources {
    Resources { cpu_millis: CPU_MILLIS, memory: MEMORY, pids: PIDS, disk: DISK }
}

/// The name of a step that has none of its own, counted from 1.
pub fn step_name(number: usize) -> String {
    format!("step {number}")
}
