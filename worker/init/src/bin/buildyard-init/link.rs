//! The connection to the worker, made again for ever.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use buildyard_init::protocol::{FromInit, Hello, ToInit};

use crate::sys;
use crate::window::Window;

/// Pause before connecting again: doubled from the first to the second with each failure in a row. A worker that
/// restarts is found within a quarter of a second, and an init that is left alone costs four calls a second.
const FIRST_PAUSE_MS: u64 = 5;
const LONGEST_PAUSE_MS: u64 = 250;
/// Read at once. A job of the greatest size takes a few turns.
const READ_BYTES: usize = 64 * 1024;

/// The connection to the worker, or the wait for the next try.
pub(crate) struct Link {
    path: CString,
    state: State,
    pause_ms: u64,
    /// When the last connection broke, or the first was to be made.
    alone_since: u64,
}

enum State {
    Down { retry_at: u64 },
    Up(Connection),
}

struct Connection {
    socket: OwnedFd,
    /// What is left of the frame that begins the connection.
    greeting: Vec<u8>,
    /// Whether the worker has said from where on it wants frames.
    resumed: bool,
    /// Bytes of frames that are not all there yet; never more than one frame and [`READ_BYTES`].
    inbox: Vec<u8>,
}

impl Link {
    pub(crate) fn new(path: CString, now: u64) -> Self {
        Self { path, state: State::Down { retry_at: now }, pause_ms: FIRST_PAUSE_MS, alone_since: now }
    }

    /// Since when there is no connection; `None` while there is one.
    pub(crate) fn alone_since(&self) -> Option<u64> {
        match &self.state {
            State::Down { .. } => Some(self.alone_since),
            State::Up(_) => None,
        }
    }

    /// When to try again, if there is no connection.
    pub(crate) fn retry_at(&self) -> Option<u64> {
        match &self.state {
            State::Down { retry_at } => Some(*retry_at),
            State::Up(_) => None,
        }
    }

    /// What to wait for.
    pub(crate) fn interest(&self, window: &Window) -> Option<(RawFd, i16)> {
        let State::Up(connection) = &self.state else {
            return None;
        };
        let waits_to_send =
            !connection.greeting.is_empty() || (connection.resumed && !window.unsent().is_empty());
        let events = if waits_to_send { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
        Some((connection.socket.as_raw_fd(), events))
    }

    /// Connects if it is time to.
    pub(crate) fn connect_if_due(&mut self, now: u64, hello: impl FnOnce() -> Hello) {
        let State::Down { retry_at } = &self.state else {
            return;
        };
        if now < *retry_at {
            return;
        }
        let Ok(socket) = sys::connect(&self.path) else {
            self.close(now);
            return;
        };
        let mut greeting = Vec::new();
        FromInit::Hello(hello())
            .encode(&mut greeting)
            .expect("a job's key came in a frame, so it fits into one");
        self.state = State::Up(Connection { socket, greeting, resumed: false, inbox: Vec::new() });
    }

    /// Gives the connection up. The next try comes after a pause.
    pub(crate) fn close(&mut self, now: u64) {
        if let State::Up(_) = self.state {
            self.alone_since = now;
        }
        self.state = State::Down { retry_at: now + self.pause_ms };
        self.pause_ms = (self.pause_ms * 2).min(LONGEST_PAUSE_MS);
    }

    /// Lets numbered frames flow. False if they do already: a frame may be sent in part, so no connection can begin
    /// anew in its midst.
    pub(crate) fn resume(&mut self) -> bool {
        self.pause_ms = FIRST_PAUSE_MS;
        match &mut self.state {
            State::Up(connection) => !std::mem::replace(&mut connection.resumed, true),
            // It broke just now; the frame was read before that.
            State::Down { .. } => true,
        }
    }

    /// The frames that have arrived. A connection that ends or makes no sense is closed.
    pub(crate) fn receive(&mut self, now: u64) -> Vec<ToInit> {
        let State::Up(connection) = &mut self.state else {
            return Vec::new();
        };
        let mut frames = Vec::new();
        if connection.receive(&mut frames).is_err() {
            self.close(now);
        }
        frames
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self, now: u64, window: &mut Window) {
        let State::Up(connection) = &mut self.state else {
            return;
        };
        if connection.flush(window).is_err() {
            self.close(now);
        }
    }
}

impl Connection {
    fn receive(&mut self, frames: &mut Vec<ToInit>) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        let Some(count) = sys::read(self.socket.as_fd(), &mut buffer)? else {
            return Ok(());
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inbox.extend_from_slice(&buffer[..count]);
        let mut at = 0;
        while let Some((frame, length)) = ToInit::decode(&self.inbox[at..]).map_err(io::Error::other)? {
            frames.push(frame);
            at += length;
        }
        if at == self.inbox.len() {
            // Gives back what a long job took.
            self.inbox = Vec::new();
        } else {
            self.inbox.drain(..at);
        }
        Ok(())
    }

    fn flush(&mut self, window: &mut Window) -> io::Result<()> {
        while !self.greeting.is_empty() {
            match sys::send(self.socket.as_fd(), &self.greeting)? {
                Some(count) => drop(self.greeting.drain(..count)),
                None => return Ok(()),
            }
        }
        while self.resumed && !window.unsent().is_empty() {
            match sys::send(self.socket.as_fd(), window.unsent())? {
                Some(count) => window.sent(count),
                None => return Ok(()),
            }
        }
        Ok(())
    }
}
