//! Process 1 of an attempt's container: `buildyard-init SOCKET`. As `buildyard-init hold` it only keeps a container, and
//! with it a network namespace, until it is killed.
//!
//! It waits for a job, carries its steps out, and tells the worker what happened; [`buildyard_init::protocol`]
//! says how they talk. It has one thread and one loop, which waits for everything at once and for nothing alone.
//!
//! What a step finds:
//!
//! - A shell of its own, `sh -e -c SCRIPT` or `bash -eo pipefail -c SCRIPT`, in a session of its own, with exactly
//!   the variables of the job, standard input at its end, and separate pipes for output and error. The order
//!   within each is kept; between the two it is as near as two pipes allow. A script too long for an argument
//!   is read from a sealed file in memory.
//! - Its processes end with it: what its shell leaves running is killed, then the output that is left is read.
//!   So a background process can neither hold up a step nor outlive it.
//! - At a time limit or a stop, all its processes get TERM, and KILL after the grace.
//! - Time goes on while the worker takes no output and the step has to wait for it.
//!
//! TERM from outside (`docker stop`) ends an init that waits for a job. One that has a job takes orders only from
//! the worker: a step can make a signal look as if it came from outside, by filling the queue that holds the
//! sender's name.

mod guard;
mod link;
mod run;
mod spawn;
mod sys;
mod window;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use buildyard_init::protocol::{
    EXIT_ABANDONED, EXIT_ACKNOWLEDGED, EXIT_USAGE, End, EndWhy, Frame, Hello, InitState, Stream, ToInit,
    Usage, VERSION,
};

use link::Link;
use run::Run;
use window::Window;

/// How long the end of a job that never came waits to be fetched.
const LINGER_WITHOUT_JOB_MS: u64 = 60_000;

/// How long an init without a job waits for a worker to connect to: longer than a worker takes to be mended, and not for
/// ever, since a container that nobody knows of would stay with it.
const LINGER_ALONE_MS: u64 = 10 * 60_000;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let Ok([path]) = <[_; 1]>::try_from(arguments) else {
        return refuse("usage: buildyard-init SOCKET | hold");
    };
    let Ok(path) = CString::new(path.into_vec()) else {
        return refuse("the socket's path holds a zero byte");
    };
    // Ending a step means killing every process that can be seen. Only process 1 of a container may do that.
    if std::process::id() != 1 {
        return refuse("buildyard-init is process 1 of a container and does nothing elsewhere");
    }
    if path.as_bytes() == b"hold" {
        hold();
    }
    match Init::new(path) {
        Ok(mut init) => ExitCode::from(init.run() as u8),
        Err(error) => refuse(&format!("buildyard-init could not begin: {error}")),
    }
}

fn hold() -> ! {
    loop {
        sys::poll(&mut [], u64::MAX);
    }
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("{reason}");
    ExitCode::from(EXIT_USAGE as u8)
}

struct Init {
    signals: OwnedFd,
    link: Link,
    window: Window,
    state: State,
}

enum State {
    Waiting,
    Running(Box<Run>),
    Done { job: String, abandon_at: u64 },
}

impl State {
    /// When to give up, if nothing comes until then.
    fn abandon_at(&self, alone_since: Option<u64>) -> Option<u64> {
        match self {
            State::Waiting => alone_since.map(|since| since.saturating_add(LINGER_ALONE_MS)),
            State::Running(_) => None,
            State::Done { abandon_at, .. } => Some(*abandon_at),
        }
    }
}

/// What there is news of.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Link,
    Output(Stream),
}

impl Init {
    fn new(path: CString) -> std::io::Result<Self> {
        sys::set_dumpable(false)?;
        sys::close_inherited();
        sys::null_stdio()?;
        let signals = sys::take_signals()?;
        Ok(Self {
            signals,
            link: Link::new(path, sys::now_ms()),
            window: Window::new(),
            state: State::Waiting,
        })
    }

    /// The loop. Gives the exit code.
    fn run(&mut self) -> i32 {
        let mut reap_more = false;
        loop {
            let now = sys::now_ms();
            let (state, window) = (&self.state, &self.window);
            self.link.connect_if_due(now, || hello(state, window));
            let news = self.wait(if reap_more { 0 } else { self.patience_ms(now) });
            let now = sys::now_ms();
            reap_more = false;
            for source in news {
                match source {
                    Source::Signals => {
                        if self.signalled() {
                            return EXIT_ACKNOWLEDGED;
                        }
                        reap_more = true;
                    }
                    Source::Link => {
                        for frame in self.link.receive(now) {
                            self.obey(frame, now);
                        }
                    }
                    Source::Output(stream) => {
                        if let State::Running(run) = &mut self.state {
                            run.read(stream, now, &mut self.window);
                        }
                    }
                }
            }
            if let State::Running(run) = &mut self.state {
                run.tick(now);
                reap_more = reap_more && run.reap();
                run.advance(now, &mut self.window);
                if run.is_over() {
                    let abandon_at = now.saturating_add(run.linger_ms());
                    self.state = State::Done { job: run.key().to_owned(), abandon_at };
                }
            }
            self.link.flush(now, &mut self.window);
            if let State::Done { .. } = &self.state
                && self.window.is_empty()
            {
                return EXIT_ACKNOWLEDGED;
            }
            if self.state.abandon_at(self.link.alone_since()).is_some_and(|abandon_at| abandon_at <= now) {
                return EXIT_ABANDONED;
            }
        }
    }

    /// How long there is nothing to do unless there is news.
    fn patience_ms(&self, now: u64) -> u64 {
        let own = match &self.state {
            State::Running(run) => run.wake_at(now),
            State::Waiting | State::Done { .. } => self.state.abandon_at(self.link.alone_since()),
        };
        let wake_at = [own, self.link.retry_at()].into_iter().flatten().min().unwrap_or(u64::MAX);
        wake_at.saturating_sub(now)
    }

    /// Waits for news. Pipes are left alone while the window is full, and so the step waits in its write.
    fn wait(&self, timeout_ms: u64) -> Vec<Source> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![libc::pollfd { fd: self.signals.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        if let Some((fd, events)) = self.link.interest(&self.window) {
            sources.push(Source::Link);
            fds.push(libc::pollfd { fd, events, revents: 0 });
        }
        if let State::Running(run) = &self.state
            && self.window.takes_output()
        {
            for (stream, fd) in run.outputs() {
                sources.push(Source::Output(stream));
                fds.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            }
        }
        sys::poll(&mut fds, timeout_ms);
        sources.into_iter().zip(fds).filter(|(_, fd)| fd.revents != 0).map(|(source, _)| source).collect()
    }

    /// Takes note of signals. True if it is time to go.
    fn signalled(&mut self) -> bool {
        let mut asked_to_end = false;
        while let Some(number) = sys::next_signal(self.signals.as_fd()) {
            asked_to_end |= number == libc::SIGTERM;
        }
        asked_to_end && matches!(self.state, State::Waiting)
    }

    fn obey(&mut self, frame: ToInit, now: u64) {
        match frame {
            ToInit::Job(job) => {
                if let State::Waiting = self.state {
                    self.state = State::Running(Box::new(Run::new(*job, now)));
                }
            }
            ToInit::Resume { next } => {
                if !self.link.resume() || self.window.resume(next).is_err() {
                    self.link.close(now);
                }
            }
            ToInit::Ack { next } => {
                if self.window.acknowledge(next).is_err() {
                    self.link.close(now);
                }
            }
            ToInit::KeepAlive { lease_ms } => {
                if let State::Running(run) = &mut self.state {
                    run.keep_alive(lease_ms, now);
                }
            }
            ToInit::Stop { cause, grace_ms } => match &mut self.state {
                State::Waiting => self.end_without_job(EndWhy::Stopped { cause }, now),
                State::Running(run) => run.stop(cause, grace_ms, now),
                State::Done { .. } => {}
            },
            ToInit::Fence => match &mut self.state {
                State::Waiting => self.end_without_job(EndWhy::Fenced, now),
                State::Running(run) => run.fence(),
                State::Done { .. } => {}
            },
        }
    }

    fn end_without_job(&mut self, why: EndWhy, now: u64) {
        let end = End { why, usage: Usage::default(), log_bytes: 0, disk: None };
        self.window.push(sys::wall_ms(), Frame::End(end));
        self.state = State::Done { job: String::new(), abandon_at: now + LINGER_WITHOUT_JOB_MS };
    }
}

fn hello(state: &State, window: &Window) -> Hello {
    let (state, job) = match state {
        State::Waiting => (InitState::Waiting, ""),
        State::Running(run) => (InitState::Running, run.key()),
        State::Done { job, .. } => (InitState::Done, job.as_str()),
    };
    Hello {
        version: VERSION,
        state,
        job: job.to_owned(),
        first_kept: window.first_kept(),
        next: window.next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_without_a_job_waits_for_ever_only_while_somebody_is_there() {
        assert_eq!(State::Waiting.abandon_at(None), None);
        assert_eq!(State::Waiting.abandon_at(Some(7)), Some(7 + LINGER_ALONE_MS));
        let done = State::Done { job: "att-1-0-1".to_owned(), abandon_at: 9 };
        assert_eq!((done.abandon_at(None), done.abandon_at(Some(7))), (Some(9), Some(9)));
        // Tries that fail do not begin the wait anew.
        let mut link = Link::new(CString::new("/nowhere/at/all").expect("no zero byte"), 100);
        for now in [100, 200, 300] {
            link.connect_if_due(now, || hello(&State::Waiting, &Window::new()));
            assert_eq!(link.alone_since(), Some(100));
        }
    }
}
