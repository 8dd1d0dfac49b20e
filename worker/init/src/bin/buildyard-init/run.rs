//! A job being carried out: its steps one after the other, their limits, their end.
//!
//! Nothing in here waits. The main loop says what happened (a process ended, a pipe has output, time passed, the
//! worker spoke) and then lets [`Run::advance`] go as far as it can.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use buildyard_init::protocol::{DiskLow, End, EndWhy, Frame, Job, StepEnd, StepHow, Stream, Usage};

use crate::spawn::{self, Spawned};
use crate::sys::{self, Ended, Reaped};
use crate::window::Window;

/// How often the room of the workspace is looked at while a step runs.
const SAMPLE_MS: u64 = 200;
/// How soon processes that were killed are looked at again, should no signal tell of their end.
const KILL_AGAIN_MS: u64 = 10;
/// Processes taken note of in one turn; a job that makes them faster does not keep init from its other duties.
const REAP_AT_ONCE: usize = 256;

/// A job being carried out.
pub(crate) struct Run {
    job: Job,
    workspace: Option<CString>,
    /// The job's beginning, by both clocks.
    started: u64,
    started_wall_ms: u64,
    /// End of the job's time.
    deadline: u64,
    /// End of the worker's lease; `None` for one without end.
    fence_at: Option<u64>,
    sample_at: u64,
    log_bytes: u64,
    usage: Usage,
    disk: Option<DiskLow>,
    /// Why no further step will begin; the first reason stays.
    ending: Option<EndWhy>,
    stage: Stage,
}

enum Stage {
    /// No step runs and no process is left.
    Between {
        next: usize,
    },
    Step(ActiveStep),
    /// The last frame is made.
    Over,
}

struct ActiveStep {
    number: u16,
    /// Its shell, until that has ended.
    shell: Option<i32>,
    how: Option<StepHow>,
    /// Standard output and error, until their end was read.
    outputs: [Option<OwnedFd>; 2],
    /// End of the step's own time.
    deadline: Option<u64>,
    phase: Phase,
    usage: Usage,
    disk: Option<DiskLow>,
}

enum Phase {
    /// Its shell runs.
    Running,
    /// All its processes were sent TERM.
    Terminating { kill_at: u64 },
    /// All that is left of it is sent KILL until nothing is.
    Killing,
    /// No process is left; the pipes may hold the last of its output.
    Draining,
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Run {
    pub(crate) fn new(job: Job, now: u64) -> Self {
        Self {
            workspace: CString::new(job.workspace.as_str()).ok(),
            started: now,
            started_wall_ms: sys::wall_ms(),
            deadline: now.saturating_add(job.timeout_ms),
            fence_at: lease_end(job.lease_ms, now),
            sample_at: now,
            log_bytes: 0,
            usage: Usage::default(),
            disk: None,
            ending: None,
            stage: Stage::Between { next: 0 },
            job,
        }
    }

    pub(crate) fn key(&self) -> &str {
        &self.job.key
    }

    /// How long the end waits to be fetched.
    pub(crate) fn linger_ms(&self) -> u64 {
        self.job.linger_ms
    }

    /// Whether the last frame is made.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// The worker's lease goes on.
    pub(crate) fn keep_alive(&mut self, lease_ms: u64, now: u64) {
        self.fence_at = lease_end(lease_ms, now);
    }

    /// The worker wants the job to end.
    pub(crate) fn stop(&mut self, cause: u8, grace_ms: u64, now: u64) {
        self.end_kindly(EndWhy::Stopped { cause }, grace_ms, now);
    }

    /// Nobody has a right to the job's steps any more.
    pub(crate) fn fence(&mut self) {
        self.end_at_once(EndWhy::Fenced);
    }

    /// TERM, and KILL after the grace.
    fn end_kindly(&mut self, why: EndWhy, grace_ms: u64, now: u64) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(why);
        if let Stage::Step(step) = &mut self.stage
            && matches!(step.phase, Phase::Running)
        {
            step.phase = Phase::Terminating { kill_at: now.saturating_add(grace_ms) };
            sys::kill_all(libc::SIGTERM);
        }
    }

    /// KILL, and what the pipes still hold is not worth having.
    fn end_at_once(&mut self, why: EndWhy) {
        self.ending.get_or_insert(why);
        if let Stage::Step(step) = &mut self.stage {
            step.outputs = [None, None];
            if !matches!(step.phase, Phase::Draining) {
                step.phase = Phase::Killing;
            }
        }
    }

    /// The pipes that are worth reading, with their streams.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (Stream, RawFd)> {
        let outputs = match &self.stage {
            Stage::Step(step) => Some(&step.outputs),
            Stage::Between { .. } | Stage::Over => None,
        };
        let pairs = outputs.into_iter().flat_map(|outputs| STREAMS.into_iter().zip(outputs));
        pairs.filter_map(|(stream, output)| Some((stream, output.as_ref()?.as_raw_fd())))
    }

    /// Reads one piece of output.
    pub(crate) fn read(&mut self, stream: Stream, now: u64, window: &mut Window) {
        let at_ms = self.at_ms(now);
        let left = self.job.log_cap_bytes - self.log_bytes;
        let Stage::Step(step) = &mut self.stage else {
            return;
        };
        let output = &mut step.outputs[stream as usize];
        let Some(fd) = output.as_ref().map(AsFd::as_fd) else {
            return;
        };
        let mut waiting = false;
        let mut fill = |room: &mut [u8]| {
            let count = sys::read(fd, room)?;
            waiting = count.is_none();
            Ok::<_, std::io::Error>(count.unwrap_or(0))
        };
        let read = match left {
            // At the cap exactly: it is broken only if there is more.
            0 => fill(&mut [0]).map(Some),
            left => {
                let limit = usize::try_from(left).unwrap_or(usize::MAX);
                window.output(at_ms, step.number, stream, limit, fill)
            }
        };
        match read {
            // The window is full.
            Ok(None) => {}
            Ok(Some(0)) if waiting => {
                // Nobody of this container can write any more; whoever else was handed the pipe has no say.
                if matches!(step.phase, Phase::Draining) {
                    *output = None;
                }
            }
            Ok(Some(0)) | Err(_) => *output = None,
            Ok(Some(_)) if left == 0 => self.end_at_once(EndWhy::LogCap),
            Ok(Some(count)) => self.log_bytes += count as u64,
        }
    }

    /// Takes note of processes that ended. True if there may be more.
    pub(crate) fn reap(&mut self) -> bool {
        for _ in 0..REAP_AT_ONCE {
            match sys::reap() {
                Reaped::Ended { pid, how, usage } => self.ended(pid, how, usage),
                Reaped::Detached => {}
                Reaped::NotYet => return false,
                Reaped::NobodyLeft => {
                    if let Stage::Step(step) = &mut self.stage
                        && matches!(step.phase, Phase::Terminating { .. } | Phase::Killing)
                    {
                        step.phase = Phase::Draining;
                    }
                    return false;
                }
            }
        }
        true
    }

    fn ended(&mut self, pid: i32, how: Ended, usage: Usage) {
        let Stage::Step(step) = &mut self.stage else {
            return;
        };
        step.usage = sum(step.usage, usage);
        if step.shell != Some(pid) {
            return;
        }
        step.shell = None;
        step.how = Some(match (self.ending, how) {
            (Some(EndWhy::JobTimedOut | EndWhy::StepTimedOut { .. }), _) => StepHow::TimedOut,
            (Some(_), _) => StepHow::Stopped,
            (None, Ended::Exit(code)) => StepHow::Exit(code),
            (None, Ended::Signal(signal)) => StepHow::Signal(signal),
        });
        // TERM goes to all processes, and each has the grace to itself; else they end with their shell.
        if matches!(step.phase, Phase::Running) {
            step.phase = Phase::Killing;
        }
        self.sample();
    }

    /// Looks at the clock: leases, limits, and the room in the workspace.
    pub(crate) fn tick(&mut self, now: u64) {
        if self.fence_at.is_some_and(|at| at <= now) {
            self.fence();
        }
        let Stage::Step(step) = &self.stage else {
            return;
        };
        if matches!(step.phase, Phase::Running) {
            let why = match step.deadline {
                Some(at) if at <= now && at < self.deadline => {
                    Some(EndWhy::StepTimedOut { step: step.number })
                }
                Some(_) | None => (self.deadline <= now).then_some(EndWhy::JobTimedOut),
            };
            if let Some(why) = why {
                self.end_kindly(why, self.job.grace_ms, now);
            }
        }
        if self.sample_at <= now {
            self.sample_at = now + SAMPLE_MS;
            self.sample();
        }
    }

    fn sample(&mut self) {
        let Some(seen) = self.workspace.as_deref().and_then(sys::room) else {
            return;
        };
        if let Stage::Step(step) = &mut self.stage {
            step.disk = Some(step.disk.map_or(seen, |disk| disk.lower(seen)));
        }
    }

    /// Goes as far as it can without waiting.
    pub(crate) fn advance(&mut self, now: u64, window: &mut Window) {
        loop {
            match &mut self.stage {
                Stage::Over => return,
                Stage::Between { next } => {
                    let next = *next;
                    if !self.begin_or_end(next, now, window) {
                        return;
                    }
                }
                Stage::Step(step) => match step.phase {
                    Phase::Running => return,
                    Phase::Terminating { kill_at } if now < kill_at => return,
                    Phase::Terminating { .. } => step.phase = Phase::Killing,
                    Phase::Killing => {
                        // Most steps leave nothing behind, and this sees it without a kill.
                        self.reap();
                        if self.is_killing() {
                            sys::kill_all(libc::SIGKILL);
                            return;
                        }
                    }
                    Phase::Draining => {
                        if step.outputs.iter().any(Option::is_some) {
                            return;
                        }
                        self.end_step(now, window);
                    }
                },
            }
        }
    }

    fn is_killing(&self) -> bool {
        matches!(&self.stage, Stage::Step(step) if matches!(step.phase, Phase::Killing))
    }

    /// Begins the next step, or ends the job. False while the window has no room for that.
    fn begin_or_end(&mut self, next: usize, now: u64, window: &mut Window) -> bool {
        let why = match self.ending {
            Some(why) => why,
            None if next == self.job.steps.len() => EndWhy::Completed,
            None if self.deadline <= now => EndWhy::JobTimedOut,
            None if window.has_reserve() => {
                self.begin_step(next, now, window);
                return true;
            }
            None => return false,
        };
        let end = End { why, usage: self.usage, log_bytes: self.log_bytes, disk: self.disk };
        window.push(self.at_ms(now), Frame::End(end));
        self.stage = Stage::Over;
        true
    }

    fn begin_step(&mut self, index: usize, now: u64, window: &mut Window) {
        let number = u16::try_from(index).expect("a job's frame holds at most u16::MAX steps");
        window.push(self.at_ms(now), Frame::StepStart { step: number });
        let step = &self.job.steps[index];
        let deadline = step.timeout_ms.map(|limit| now.saturating_add(limit));
        let (shell, how, outputs, phase) = match spawn::spawn(&self.job, step) {
            Ok(Spawned { pid, stdout, stderr }) => {
                (Some(pid), None, [Some(stdout), Some(stderr)], Phase::Running)
            }
            Err(error) => {
                let how = StepHow::SpawnFailed { fault: error.fault, errno: error.errno };
                (None, Some(how), [None, None], Phase::Killing)
            }
        };
        let (usage, disk) = (Usage::default(), None);
        self.stage = Stage::Step(ActiveStep { number, shell, how, outputs, deadline, phase, usage, disk });
    }

    fn end_step(&mut self, now: u64, window: &mut Window) {
        let at_ms = self.at_ms(now);
        let Stage::Step(step) = &self.stage else {
            return;
        };
        let (number, usage, disk) = (step.number, step.usage, step.disk);
        let how = step.how.expect("all processes have ended, its shell among them");
        window.push(at_ms, Frame::StepEnd(StepEnd { step: number, how, usage, disk }));
        self.usage = sum(self.usage, usage);
        self.disk = match (self.disk, disk) {
            (Some(one), Some(other)) => Some(one.lower(other)),
            (one, other) => one.or(other),
        };
        if how != StepHow::Exit(0) {
            self.ending.get_or_insert(EndWhy::StepFailed { step: number });
        }
        self.stage = Stage::Between { next: usize::from(number) + 1 };
    }

    /// When something has to be done, whatever else happens.
    pub(crate) fn wake_at(&self, now: u64) -> Option<u64> {
        let Stage::Step(step) = &self.stage else {
            return self.fence_at;
        };
        let phase = match step.phase {
            Phase::Running => Some(step.deadline.unwrap_or(u64::MAX).min(self.deadline)),
            Phase::Terminating { kill_at } => Some(kill_at.min(now + KILL_AGAIN_MS)),
            Phase::Killing => Some(now + KILL_AGAIN_MS),
            Phase::Draining => None,
        };
        [phase, self.fence_at, Some(self.sample_at)].into_iter().flatten().min()
    }

    fn at_ms(&self, now: u64) -> u64 {
        self.started_wall_ms + (now - self.started)
    }
}

fn lease_end(lease_ms: u64, now: u64) -> Option<u64> {
    (lease_ms != u64::MAX).then(|| now.saturating_add(lease_ms))
}

fn sum(one: Usage, other: Usage) -> Usage {
    Usage { cpu_ms: one.cpu_ms + other.cpu_ms, peak_rss_bytes: one.peak_rss_bytes.max(other.peak_rss_bytes) }
}
