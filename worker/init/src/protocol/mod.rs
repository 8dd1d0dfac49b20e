//! The channel between `buildyard-init` and the worker.
//!
//! It is a Unix stream socket. The worker listens on `ctl.sock` in a directory of the attempt that is mounted
//! read-only into the container; init connects, and connects again for ever when the worker goes away. The
//! worker serves a connection only if [`peer_pid`] is the container's init: any process of the job can open the
//! socket, none can be that process.
//!
//! Everything is little endian. A frame is a length, a kind and a body:
//!
//! ```text
//! u32 length of the rest | u8 kind | body
//! u32 length of the rest | u8 kind | u64 sequence | u64 at_ms | body        what happened: the numbered frames
//! ```
//!
//! # One connection
//!
//! 1. Init says [`Hello`]: version, what it does, which numbered frames it still holds.
//! 2. The worker answers with [`ToInit::Job`] if init waits for one, and always with [`ToInit::Resume`]. Only
//!    then numbered frames flow, beginning with the one that `Resume` names.
//! 3. The worker acknowledges what it has written to its own disk. Init keeps every frame until then, at most
//!    [`WINDOW_BYTES`] of them; when these are used up it stops reading the step's pipes, so the step blocks.
//! 4. After [`Frame::End`] is acknowledged, init exits with code 0 and the container with it.
//!
//! `Resume { next }` and `Ack { next }` mean the same thing by their number: the worker has every frame below
//! `next`, the first frame being number 0. A worker that lost frames which it had acknowledged sees that from
//! [`Hello::first_kept`], and has a gap to report; init cannot send them again.
//!
//! # Leases
//!
//! [`Job::lease_ms`] and every [`ToInit::KeepAlive`] say for how long the worker may still act. When that time
//! passes without another one, init kills the steps at once and ends with [`EndWhy::Fenced`]. It counts by a
//! clock that also runs while the host sleeps. `u64::MAX` is a lease without end.
//!
//! # What a job can do to it
//!
//! Output travels as data inside of frames, so what a step prints cannot become a frame. Nothing of this channel
//! is open in a step's processes.
//!
//! The functions here work on byte slices and do no I/O, for the worker's asynchronous code and init alike.

mod codec;
mod peer;

pub use codec::{ProtocolError, output_header};
pub use peer::peer_pid;

/// Version of this protocol. Init is part of the worker's own program, so the two differ only while a worker is
/// being upgraded over running attempts.
pub const VERSION: u16 = 1;
/// Name of the socket in the attempt's directory.
pub const SOCKET_NAME: &str = "ctl.sock";
/// Longest output of one frame; longer output is several frames.
pub const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// Bytes in front of the output of an output frame.
pub const OUTPUT_HEADER_BYTES: usize = 24;
/// Longest frame that init sends, its length included.
pub const MAX_FROM_INIT_BYTES: usize = OUTPUT_HEADER_BYTES + MAX_OUTPUT_BYTES;
/// Longest frame that a worker sends, its length included. Scripts and environment of a whole job fit: a
/// pipeline file has at most 1 MiB.
pub const MAX_TO_INIT_BYTES: usize = 4 << 20;
/// Bytes of numbered frames, headers included, that init keeps until they are acknowledged.
pub const WINDOW_BYTES: usize = 4 << 20;
/// Steps of one job at most: their number travels as `u16`.
pub const MAX_STEPS: usize = u16::MAX as usize;

/// Exit code of init after the end was acknowledged.
pub const EXIT_ACKNOWLEDGED: i32 = 0;
/// Exit code of init when it was called wrongly or is not process 1.
pub const EXIT_USAGE: i32 = 2;
/// Exit code of init when nobody fetched the end within [`Job::linger_ms`].
pub const EXIT_ABANDONED: i32 = 3;

/// A frame from init to the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromInit<'b> {
    /// The first frame of each connection.
    Hello(Hello),
    /// Something that happened. Kept by init until it is acknowledged.
    Numbered {
        /// Its number, from 0 without gaps.
        sequence: u64,
        /// Milliseconds since 1970 by the host's clock as it was when the job came, plus the time passed since.
        at_ms: u64,
        /// What happened.
        frame: Frame<'b>,
    },
}

/// What init says at the beginning of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`] of init.
    pub version: u16,
    /// What init does.
    pub state: InitState,
    /// [`Job::key`] of the job it has; empty while it waits for one.
    pub job: String,
    /// Number of the first frame that it still holds.
    pub first_kept: u64,
    /// Number of the next frame that it will make. Equal to `first_kept` when it holds none.
    pub next: u64,
}

/// What init does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitState {
    /// It has no job yet.
    Waiting,
    /// It carries out its job.
    Running,
    /// Its job ended; it waits for the last acknowledgement.
    Done,
}

/// Something that happened to the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'b> {
    /// A step wrote something.
    Output {
        /// Which step, from 0.
        step: u16,
        /// Where to.
        stream: Stream,
        /// What: 1 to [`MAX_OUTPUT_BYTES`] bytes, cut anywhere.
        bytes: &'b [u8],
    },
    /// A step begins.
    StepStart {
        /// Which step, from 0.
        step: u16,
    },
    /// A step ended: its processes are gone and its output is complete.
    StepEnd(StepEnd),
    /// The job ended. The last frame.
    End(End),
}

/// Where a step wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepEnd {
    /// Which step, from 0.
    pub step: u16,
    /// How its shell ended.
    pub how: StepHow,
    /// What its processes used together.
    pub usage: Usage,
    /// The least room that was seen while it ran; `None` if it could not be seen.
    pub disk: Option<DiskLow>,
}

/// How the shell of a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepHow {
    /// By itself, with this code.
    Exit(i32),
    /// By a signal that init did not send.
    Signal(i32),
    /// It was never started.
    SpawnFailed {
        /// What was wrong.
        fault: SpawnFault,
        /// The system's error number: `ENOENT` where shell or folder is missing.
        errno: i32,
    },
    /// The step's own time limit, or the job's, passed while it ran.
    TimedOut,
    /// Cut off: stopped, fenced, or at the log's cap.
    Stopped,
}

/// Which part of starting a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnFault {
    /// The shell could not be executed.
    Shell,
    /// The step's folder could not be entered.
    Dir,
    /// The script, a variable or a path cannot be handed over: a zero byte in it, or too long.
    Argument,
    /// The system gave no process or pipe.
    Process,
}

/// What processes used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time, user and system.
    pub cpu_ms: u64,
    /// Largest resident size of one process.
    pub peak_rss_bytes: u64,
}

/// The least room that was seen on the file system of the workspace. Sampled a few times a second and at each
/// step's end, so a short low in between is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLow {
    /// Bytes that the job could still have written.
    pub free_bytes: u64,
    /// Files that it could still have made.
    pub free_inodes: u64,
}

impl DiskLow {
    /// Below this a write is about to fail, or did: what is left is smaller than one buffer of `cp`.
    pub const FULL_BYTES: u64 = 256 * 1024;

    /// Whether the job seems to have met the end of its disk, in bytes or in files.
    pub fn looks_full(self) -> bool {
        self.free_bytes < Self::FULL_BYTES || self.free_inodes == 0
    }

    /// The lower of two samples, each number by itself.
    pub fn lower(self, other: DiskLow) -> DiskLow {
        DiskLow {
            free_bytes: self.free_bytes.min(other.free_bytes),
            free_inodes: self.free_inodes.min(other.free_inodes),
        }
    }
}

/// How the job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub why: EndWhy,
    /// All steps together.
    pub usage: Usage,
    /// Bytes of output that became frames.
    pub log_bytes: u64,
    /// The least room that was seen while any step ran; `None` if it could not be seen.
    pub disk: Option<DiskLow>,
}

/// Why the job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndWhy {
    /// Every step ended with code 0.
    Completed,
    /// A step ended otherwise, or could not be started. Its [`StepEnd`] says how.
    StepFailed {
        /// Which.
        step: u16,
    },
    /// The job's time limit passed.
    JobTimedOut,
    /// The time limit of a step passed.
    StepTimedOut {
        /// Which.
        step: u16,
    },
    /// The worker said [`ToInit::Stop`].
    Stopped {
        /// The worker's own number for the reason.
        cause: u8,
    },
    /// The output reached [`Job::log_cap_bytes`]. Exactly so many bytes became frames.
    LogCap,
    /// The lease ran out, or the worker said [`ToInit::Fence`].
    Fenced,
}

/// A frame from the worker to init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToInit {
    /// What to do. Ignored by an init that has a job, so it may be sent again after a lost connection.
    Job(Box<Job>),
    /// Send frames from here on; everything below is acknowledged. Once in a connection.
    Resume {
        /// The first frame that the worker does not have.
        next: u64,
    },
    /// Everything below is safe with the worker and may be dropped.
    Ack {
        /// The first frame that is not acknowledged.
        next: u64,
    },
    /// The worker's lease.
    KeepAlive {
        /// What is left of it. Count in the time that this frame may take.
        lease_ms: u64,
    },
    /// End the job: TERM to all its processes, KILL after the grace. The first one counts.
    Stop {
        /// Given back in [`EndWhy::Stopped`].
        cause: u8,
        /// Between TERM and KILL.
        grace_ms: u64,
    },
    /// Kill the job's processes now.
    Fence,
}

/// What init has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The worker's name for it, given back in [`Hello::job`]: the attempt's id.
    pub key: String,
    /// Steps, carried out one after the other until one fails; at most [`MAX_STEPS`].
    pub steps: Vec<Step>,
    /// Variables of every step. Nothing is added to them but the step's own.
    pub env: Vec<(String, String)>,
    /// Absolute folder in which steps start.
    pub workdir: String,
    /// A path on the file system whose room is watched.
    pub workspace: String,
    /// Most bytes of output, both streams and all steps together.
    pub log_cap_bytes: u64,
    /// Time limit of all steps together.
    pub timeout_ms: u64,
    /// Between TERM and KILL when a time limit passes.
    pub grace_ms: u64,
    /// For how long the worker may act: the first [`ToInit::KeepAlive`].
    pub lease_ms: u64,
    /// How long init waits after the end for somebody to fetch it. Then it exits with [`EXIT_ABANDONED`].
    pub linger_ms: u64,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What the shell shall do.
    pub script: String,
    /// Which shell.
    pub shell: Shell,
    /// Folder below [`Job::workdir`]; empty for that itself.
    pub dir: String,
    /// Variables of this step; they win over the job's.
    pub env: Vec<(String, String)>,
    /// Its time limit; `None` for the job's alone.
    pub timeout_ms: Option<u64>,
}

/// The shell of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// `sh -e`
    Sh,
    /// `bash -eo pipefail`
    Bash,
}
