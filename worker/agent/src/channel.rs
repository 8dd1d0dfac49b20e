//! The worker's side of the channel to an attempt's init: who may speak, and frames in and out.
//!
//! Any process of a job can open the socket in its folder. Only one can be the container's first process, and the
//! kernel says which one connected; all others are closed unread and counted. While init is connected the socket
//! is shut to everyone but root, so that a job cannot keep the worker busy with turning it away.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use buildyard_init::protocol::{FromInit, MAX_FROM_INIT_BYTES, ProtocolError, SOCKET_NAME, ToInit, peer_pid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, openat};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// Bytes that are read at once: a few large frames, or some thousand lines.
const READ_BYTES: usize = 256 * 1024;

/// Waits for an attempt's init.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    folder: OwnedFd,
    strangers: u64,
}

impl Listener {
    /// Listens in a folder, in the place of whoever listened there before. The folder is seen by the container.
    pub fn bind(folder: &Path) -> io::Result<Self> {
        let socket = folder.join(SOCKET_NAME);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // The address of a socket holds 107 bytes; a data directory may lie deeper than that.
        let folder = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let short = format!("/proc/self/fd/{}/{SOCKET_NAME}", std::os::fd::AsRawFd::as_raw_fd(&folder));
        let listener = UnixListener::bind(&short)?;
        let listener = Self { listener, folder, strangers: 0 };
        listener.admit(true)?;
        Ok(listener)
    }

    /// Opens the socket to everyone, as init needs it to connect as the job's user; or to root alone.
    pub fn admit(&self, everyone: bool) -> io::Result<()> {
        let mode = if everyone { 0o666 } else { 0o600 };
        Ok(chmodat(&self.folder, SOCKET_NAME, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    /// The next connection of that process. Whoever else connects is closed at once, so that the queue never fills
    /// with strangers while init waits in it.
    pub async fn accept(&mut self, pid: u32) -> io::Result<Connection> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if u32::try_from(peer_pid(stream.as_fd())?) == Ok(pid) {
                return Ok(Connection { stream, inbox: Vec::new(), start: 0, outbox: Vec::new() });
            }
            self.strangers += 1;
        }
    }

    /// How often somebody else connected.
    pub fn strangers(&self) -> u64 {
        self.strangers
    }
}

/// A connection to init.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Bytes that were read; those before `start` are done with.
    inbox: Vec<u8>,
    start: usize,
    outbox: Vec<u8>,
}

impl Connection {
    /// Reads more bytes. `false`: init closed the connection. Can be dropped at any time without losing a byte.
    pub async fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.inbox.drain(..self.start);
            self.start = 0;
        }
        // What is left over is part of one frame, so the buffer stays within this.
        self.inbox.reserve(READ_BYTES + MAX_FROM_INIT_BYTES - self.inbox.len().min(MAX_FROM_INIT_BYTES));
        let count = (&mut self.stream).take(READ_BYTES as u64).read_buf(&mut self.inbox).await?;
        Ok(count > 0)
    }

    /// The next frame of what was read; `None` when more has to be read first.
    pub fn next_frame(&mut self) -> Result<Option<FromInit<'_>>, ProtocolError> {
        match FromInit::decode(&self.inbox[self.start..])? {
            None => Ok(None),
            Some((frame, length)) => {
                self.start += length;
                Ok(Some(frame))
            }
        }
    }

    /// Adds a frame to what [`flush`](Self::flush) sends.
    pub fn queue(&mut self, frame: &ToInit) -> Result<(), ProtocolError> {
        frame.encode(&mut self.outbox)
    }

    /// Sends what is queued.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let sent = self.stream.write_all(&self.outbox).await;
        self.outbox.clear();
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_init::protocol::{Frame, Hello, InitState, Stream, VERSION};

    fn hello() -> FromInit<'static> {
        let job = String::new();
        FromInit::Hello(Hello { version: VERSION, state: InitState::Waiting, job, first_kept: 0, next: 0 })
    }

    #[tokio::test]
    async fn only_the_process_that_is_expected_is_served() {
        let temp = tempfile::tempdir().unwrap();
        let mut listener = Listener::bind(temp.path()).unwrap();
        let path = temp.path().join(SOCKET_NAME);
        let own = std::process::id();

        // This process is a stranger to who waits for another one.
        let stranger = UnixStream::connect(&path).await.unwrap();
        let waited = {
            let mut accepting = std::pin::pin!(listener.accept(own + 1));
            let mut seen = false;
            while !seen {
                assert!(futures_util::poll!(accepting.as_mut()).is_pending());
                let mut byte = [0];
                seen = matches!(stranger.try_read(&mut byte), Ok(0));
                tokio::task::yield_now().await;
            }
            seen
        };
        assert!(waited, "it was closed");
        assert_eq!(listener.strangers(), 1);

        let mut init = UnixStream::connect(&path).await.unwrap();
        let mut connection = listener.accept(own).await.unwrap();
        let mut bytes = Vec::new();
        hello().encode(&mut bytes).unwrap();
        init.write_all(&bytes).await.unwrap();
        assert!(connection.fill().await.unwrap());
        assert_eq!(connection.next_frame().unwrap(), Some(hello()));
    }

    #[tokio::test]
    async fn the_socket_is_shut_while_init_is_connected() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let listener = Listener::bind(temp.path()).unwrap();
        let mode = || std::fs::metadata(temp.path().join(SOCKET_NAME)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o666);
        listener.admit(false).unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[tokio::test]
    async fn a_folder_may_lie_deep() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        Listener::bind(&deep).unwrap();
        Listener::bind(&deep).expect("in the place of the one before");
    }

    #[tokio::test]
    async fn frames_arrive_whole_however_they_were_cut() {
        let temp = tempfile::tempdir().unwrap();
        let mut listener = Listener::bind(temp.path()).unwrap();
        let mut init = UnixStream::connect(temp.path().join(SOCKET_NAME)).await.unwrap();
        let mut connection = listener.accept(std::process::id()).await.unwrap();
        let output = vec![7; 50_000];
        let frame = |sequence| FromInit::Numbered {
            sequence,
            at_ms: 1,
            frame: Frame::Output { step: 0, stream: Stream::Stdout, bytes: &output },
        };
        let mut bytes = Vec::new();
        for sequence in 0..20 {
            frame(sequence).encode(&mut bytes).unwrap();
        }
        let writer = tokio::spawn(async move {
            for part in bytes.chunks(33_333) {
                init.write_all(part).await.unwrap();
            }
        });
        let mut next = 0;
        while connection.fill().await.unwrap() {
            while let Some(found) = connection.next_frame().unwrap() {
                assert_eq!(found, frame(next));
                next += 1;
            }
            assert!(connection.inbox.capacity() <= 2 * READ_BYTES + 2 * MAX_FROM_INIT_BYTES);
        }
        writer.await.unwrap();
        assert_eq!(next, 20);
        assert!(!connection.fill().await.unwrap(), "closed stays closed");
    }
}
