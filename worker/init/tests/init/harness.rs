//! A PID namespace with init in it, and the worker's end of the channel.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use buildyard_init::protocol::{
    End, Frame, FromInit, Hello, Job, SOCKET_NAME, Shell, Step, StepEnd, StepHow, Stream, ToInit, peer_pid,
};
use tempfile::TempDir;

/// After this a test has failed for being stuck. Nothing is expected to take anywhere near as long.
const STUCK: Duration = Duration::from_secs(120);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As whom init and its steps run; without any capability in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Build,
    Root,
}

/// A PID namespace whose process 1 is init.
pub(crate) struct Container {
    dir: TempDir,
    listener: UnixListener,
    unshare: Child,
}

/// Waits until `condition` gives something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begin.elapsed() < STUCK, "still waiting for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn can_unshare() -> bool {
    let tried = Command::new("unshare")
        .args(["--fork", "--pid", "--mount-proc", "--kill-child=KILL", "setpriv", "--no-new-privs", "true"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

impl Container {
    /// Starts init as `user`. `None`, and a line that says so, where that is not permitted.
    pub(crate) fn start(user: User) -> Option<Self> {
        Self::start_after(user, "")
    }

    /// As [`Container::start`], in an image that has no shell.
    pub(crate) fn start_without_shell(user: User) -> Option<Self> {
        // On a merged system /bin is /usr/bin, so one empty file system hides every shell.
        Self::start_after(user, "mount -t tmpfs none /usr/bin")
    }

    /// As [`Container::start`], with a small file system at [`Container::workspace`].
    pub(crate) fn start_with_small_workspace(user: User) -> Option<Self> {
        Self::start_after(user, r#"mount -t tmpfs -o size=2m,nr_inodes=64,mode=777 none "$WORKSPACE""#)
    }

    fn start_after(user: User, preparation: &str) -> Option<Self> {
        if !can_unshare() {
            let why = "unshare or setpriv is missing, or not permitted here; run as root";
            assert!(std::env::var_os("BUILDYARD_REQUIRE_ENGINE").is_none(), "not run: {why}");
            eprintln!("skipped: {why}");
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("open to all");
        // Where a folder of the build is closed to others, or /usr/bin is hidden, copies still run.
        let init = copy_program(Path::new(env!("CARGO_BIN_EXE_buildyard-init")), dir.path());
        let setpriv = copy_program(Path::new("/usr/bin/setpriv"), dir.path());
        let workspace = dir.path().join("workspace");
        fs::create_dir(&workspace).expect("a workspace");
        chown(&workspace, Some(user.id()), Some(user.id())).expect("owned by the job");
        let listener = listen(dir.path());
        let unshare = Command::new("unshare")
            .args(["--fork", "--pid", "--mount-proc", "--kill-child=KILL", "/bin/sh", "-ec"])
            .arg(format!("{preparation}\nexec \"$@\""))
            .arg("sh")
            .arg(setpriv)
            .args(user.setpriv_options())
            .arg(init)
            .arg(dir.path().join(SOCKET_NAME))
            .env("WORKSPACE", workspace)
            .env("CANARY_OF_INIT", "canary-in-the-environment-of-init")
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare starts");
        Some(Self { dir, listener, unshare })
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.dir.path().join("workspace")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET_NAME)
    }

    /// Init's process id as this side sees it. Another program has it for a moment before init.
    pub(crate) fn init_pid(&self) -> i32 {
        let parent = self.unshare.id();
        let children = PathBuf::from(format!("/proc/{parent}/task/{parent}/children"));
        wait_for("init", || fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok())
    }

    /// A number of init's `/proc/…/status`, in KiB where it is a size.
    pub(crate) fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.init_pid())).expect("init runs");
        let line = status.lines().find(|line| line.starts_with(field)).expect("such a field");
        line.split_whitespace().nth(1).expect("a value").parse().expect("a number")
    }

    /// What a worker does after its restart: the socket is another one under the same name.
    pub(crate) fn listen_anew(&mut self) {
        fs::remove_file(self.socket()).expect("was there");
        self.listener = listen(self.dir.path());
    }

    /// Takes the next connection that is really init's, and its greeting. Others are closed.
    pub(crate) fn accept(&self) -> Worker {
        let pid = self.init_pid();
        loop {
            let stream = wait_for("a connection", || match self.listener.accept() {
                Ok((stream, _)) => Some(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => panic!("{error}"),
            });
            if peer_pid(stream.as_fd()).expect("a peer") != pid {
                continue;
            }
            stream.set_nonblocking(false).expect("set");
            stream.set_read_timeout(Some(STUCK)).expect("set");
            let mut worker = Worker { stream, inbox: Vec::new(), at: 0, hello: None };
            worker.hello = Some(worker.read_hello());
            return worker;
        }
    }

    /// Connections that wait to be taken and are not init's.
    pub(crate) fn strangers_waiting(&self) -> usize {
        let pid = self.init_pid();
        let mut strangers = 0;
        while let Ok((stream, _)) = self.listener.accept() {
            assert_ne!(peer_pid(stream.as_fd()).expect("a peer"), pid, "init has its connection");
            strangers += 1;
        }
        strangers
    }

    /// The defaults of a job of these steps.
    pub(crate) fn job(&self, scripts: &[&str]) -> Job {
        let workspace = self.workspace().to_str().expect("a text").to_owned();
        Job {
            key: "attempt-1".to_owned(),
            steps: scripts.iter().map(|script| step(script)).collect(),
            env: vec![("PATH".to_owned(), PATH.to_owned())],
            workdir: workspace.clone(),
            workspace,
            log_cap_bytes: 1 << 30,
            timeout_ms: 600_000,
            grace_ms: 60_000,
            lease_ms: u64::MAX,
            linger_ms: 600_000,
        }
    }

    /// Carries a job out with a worker that keeps up, and gives what happened.
    pub(crate) fn run(&mut self, job: &Job) -> Record {
        let mut worker = self.accept();
        worker.begin(job);
        let mut record = Record::default();
        worker.follow(&mut record);
        assert_eq!(self.exit_code(), 0, "the end was acknowledged");
        record
    }

    /// Waits for init's end.
    pub(crate) fn exit_code(&mut self) -> i32 {
        let status: ExitStatus = wait_for("init's end", || self.unshare.try_wait().expect("it is our child"));
        status.code().expect("unshare gives on what init ended with")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Takes init along, and with it everything in the namespace.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

impl User {
    pub(crate) fn id(self) -> u32 {
        match self {
            User::Build => 1000,
            User::Root => 0,
        }
    }

    fn setpriv_options(self) -> Vec<String> {
        let mut options: Vec<String> =
            ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--clear-groups"]
                .map(str::to_owned)
                .to_vec();
        options.extend([format!("--reuid={}", self.id()), format!("--regid={}", self.id())]);
        options
    }
}

/// By another process: a file that this one has open for writing at the moment of any fork cannot be executed.
pub(crate) fn copy_program(program: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join(program.file_name().expect("a program"));
    let copied = Command::new("cp").arg(program).arg(&copy).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {}", program.display());
    copy
}

fn listen(dir: &Path) -> UnixListener {
    let path = dir.join(SOCKET_NAME);
    let listener = UnixListener::bind(&path).expect("a socket");
    fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("open to the job's user");
    listener.set_nonblocking(true).expect("set");
    listener
}

pub(crate) fn step(script: &str) -> Step {
    Step {
        script: script.to_owned(),
        shell: Shell::Sh,
        dir: String::new(),
        env: Vec::new(),
        timeout_ms: None,
    }
}

/// What a worker has written down of a job.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Number of the next frame; each frame counts once.
    pub(crate) next: u64,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) started: Vec<u16>,
    pub(crate) ends: Vec<StepEnd>,
    pub(crate) end: Option<End>,
    last_at_ms: u64,
}

impl Record {
    /// Takes a frame. A worker sees to it that it has every frame once: that is asserted here.
    fn take(&mut self, sequence: u64, at_ms: u64, frame: Frame<'_>) {
        assert_eq!(sequence, self.next, "no frame is missing or doubled");
        assert!(self.end.is_none(), "the end is the last frame");
        assert!(at_ms >= self.last_at_ms, "time goes forward");
        (self.next, self.last_at_ms) = (sequence + 1, at_ms);
        match frame {
            Frame::Output { step, stream, bytes } => {
                assert_eq!(Some(&step), self.started.last(), "output belongs to the step that runs");
                assert!(self.ends.len() < self.started.len());
                match stream {
                    Stream::Stdout => self.stdout.extend_from_slice(bytes),
                    Stream::Stderr => self.stderr.extend_from_slice(bytes),
                }
            }
            Frame::StepStart { step } => self.started.push(step),
            Frame::StepEnd(end) => {
                assert_eq!(Some(&end.step), self.started.last());
                self.ends.push(end);
            }
            Frame::End(end) => self.end = Some(end),
        }
    }

    pub(crate) fn stdout(&self) -> &str {
        str::from_utf8(&self.stdout).expect("text")
    }

    pub(crate) fn stderr(&self) -> &str {
        str::from_utf8(&self.stderr).expect("text")
    }

    pub(crate) fn hows(&self) -> Vec<StepHow> {
        self.ends.iter().map(|end| end.how).collect()
    }

    pub(crate) fn end(&self) -> &End {
        self.end.as_ref().expect("the job ended")
    }
}

/// One connection with init.
pub(crate) struct Worker {
    stream: UnixStream,
    inbox: Vec<u8>,
    at: usize,
    hello: Option<Hello>,
}

impl Worker {
    pub(crate) fn hello(&self) -> &Hello {
        self.hello.as_ref().expect("read when the connection was taken")
    }

    pub(crate) fn send(&mut self, frame: &ToInit) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).expect("fits");
        self.send_raw(&bytes);
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        // Init may just have ended or closed; what that means is seen when reading.
        let _ = self.stream.write_all(bytes);
    }

    /// Hands the job over and asks for every frame.
    pub(crate) fn begin(&mut self, job: &Job) {
        self.send(&ToInit::Job(Box::new(job.clone())));
        self.send(&ToInit::Resume { next: 0 });
    }

    fn read_hello(&mut self) -> Hello {
        loop {
            if let Some((FromInit::Hello(hello), length)) = FromInit::decode(&self.inbox).expect("a frame") {
                self.at = length;
                return hello;
            }
            assert!(self.fill(64 * 1024), "init greets before it closes");
        }
    }

    /// Reads once. False at the end of the connection.
    fn fill(&mut self, most: usize) -> bool {
        let mut buffer = vec![0; most];
        let mut read = self.stream.read(&mut buffer);
        while matches!(&read, Err(error) if error.kind() == ErrorKind::Interrupted) {
            read = self.stream.read(&mut buffer);
        }
        match read {
            Ok(0) => false,
            Ok(count) => {
                self.inbox.drain(..self.at);
                self.at = 0;
                self.inbox.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("init does not say anything any more: {error}"),
        }
    }

    /// Reads some bytes, at most `most`, and writes every whole frame down. False at the end of the connection.
    pub(crate) fn read(&mut self, most: usize, record: &mut Record) -> bool {
        if !self.fill(most) {
            return false;
        }
        while let Some((value, length)) = FromInit::decode(&self.inbox[self.at..]).expect("whole frames") {
            let FromInit::Numbered { sequence, at_ms, frame } = value else {
                panic!("init greets only once");
            };
            record.take(sequence, at_ms, frame);
            self.at += length;
        }
        true
    }

    /// Reads, without an acknowledgement, until nothing more has come for a while.
    pub(crate) fn read_until_silent(&mut self, record: &mut Record) {
        self.stream.set_nonblocking(true).expect("set");
        let mut silent = 0;
        while silent < 100 {
            let mut peeked = [0; 1];
            match self.stream.read(&mut peeked) {
                Ok(0) => panic!("init closed the connection"),
                Ok(_) => {
                    self.inbox.push(peeked[0]);
                    self.stream.set_nonblocking(false).expect("set");
                    let _ = self.read(1 << 20, record);
                    self.stream.set_nonblocking(true).expect("set");
                    silent = 0;
                }
                Err(_) => {
                    silent += 1;
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
        self.stream.set_nonblocking(false).expect("set");
    }

    pub(crate) fn ack(&mut self, record: &Record) {
        self.send(&ToInit::Ack { next: record.next });
    }

    /// Reads and acknowledges until `done`.
    pub(crate) fn follow_until(&mut self, record: &mut Record, done: impl Fn(&Record) -> bool) {
        while !done(record) {
            let goes_on = self.read(256 * 1024, record);
            assert!(goes_on, "the connection ended early: {} {}", record.stdout(), record.stderr());
            self.ack(record);
        }
    }

    /// Reads and acknowledges to the job's end.
    pub(crate) fn follow(&mut self, record: &mut Record) {
        self.follow_until(record, |record| record.end.is_some());
    }

    /// Whether init closes the connection.
    pub(crate) fn is_closed_by_init(&mut self) -> bool {
        while self.fill(64 * 1024) {}
        true
    }
}
