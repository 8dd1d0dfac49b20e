//! Which way output takes out of a container: an attach through the engine, or init and its socket. Each beside what
//! the container writes to a file of its own, which is the limit of the host. `docs/decisions/0001-init-channel.md`
//! holds the figures and the decision.

use std::fs::{self, Permissions};
use std::io::{BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions,
};
use buildyard_init::protocol::{Frame, FromInit, Job, SOCKET_NAME, Shell, Step, ToInit, peer_pid};
use buildyard_test_bench::{median, report};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const IMAGE: &str = "buildyard-test/busybox:1";
const ROUNDS: usize = 5;
const BYTES: usize = 500_000_000;
const LINE_BYTES: usize = 100;
const LINES: u64 = 2_000_000;
const FEW_LINES: u64 = 60;
const AWAY: Duration = Duration::from_millis(800);
const STUCK: Duration = Duration::from_secs(120);

/// A way for output to leave its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The engine's attach, read by this program.
    Attach,
    /// The engine's attach, read by the engine's own command and piped to this program.
    AttachCommand,
    /// Init and its socket.
    Socket,
    /// A file in the container: no way out at all.
    File,
}

#[tokio::main]
async fn main() -> Result<()> {
    let bench = Bench::new().await?;
    println!("{ROUNDS} rounds, the ways in turn; {} MB of {LINE_BYTES}-byte lines", BYTES / 1_000_000);
    bench.throughput("cat /bench/lines", BYTES, None).await?;
    bench.throughput(&format!("seq 1 {LINES}"), numbered(LINES).len(), Some(LINES)).await?;
    bench.loss().await
}

struct Bench {
    docker: Docker,
    dir: tempfile::TempDir,
    init: PathBuf,
}

/// What one way took.
struct Taken {
    seconds: f64,
    engine_cpu_seconds: f64,
}

impl Bench {
    async fn new() -> Result<Self> {
        let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
        ensure_image().await?;
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let mut lines = BufWriter::new(fs::File::create(dir.path().join("lines"))?);
        for number in 0..BYTES / LINE_BYTES {
            writeln!(lines, "{number:0width$}", width = LINE_BYTES - 1)?;
        }
        lines.flush()?;
        for name in ["go", "done"] {
            let path = dir.path().join(name);
            ensure!(Command::new("mkfifo").arg(&path).status()?.success(), "mkfifo");
            fs::set_permissions(path, Permissions::from_mode(0o666))?;
        }
        let init = buildyard_worker::init_binary::write_to(dir.path())?;
        Ok(Self { docker, dir, init })
    }

    async fn throughput(&self, print: &str, bytes: usize, lines: Option<u64>) -> Result<()> {
        let ways = [Way::Attach, Way::AttachCommand, Way::Socket, Way::File];
        let mut taken = ways.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (way, taken) in ways.into_iter().zip(&mut taken) {
                taken.push(tokio::time::timeout(STUCK, self.measure(way, print, bytes, lines)).await??);
            }
        }
        let rate = |at: usize| {
            let seconds: Vec<f64> = taken[at].iter().map(|taken| taken.seconds).collect();
            bytes as f64 / 1e6 / median(&seconds)
        };
        let engine = |at: usize| {
            let seconds: Vec<f64> = taken[at].iter().map(|taken| taken.engine_cpu_seconds).collect();
            median(&seconds) * 1e3
        };
        let (attach, command, socket, file) = (rate(0), rate(1), rate(2), rate(3));
        println!("{print}:");
        report("  init and socket, against attach", socket, ("attach", attach), "MB/s", ">= 1.0", ROUNDS);
        let peer = ("docker start --attach", command);
        report("  init and socket, against the CLI", socket, peer, "MB/s", ">= 1.0", ROUNDS);
        report(
            "  init and socket, against a file",
            socket,
            ("file in the container", file),
            "MB/s",
            "-",
            ROUNDS,
        );
        report("  attach, against a file", attach, ("file in the container", file), "MB/s", "-", ROUNDS);
        report("  engine's CPU, socket and attach", engine(2), ("attach", engine(0)), "ms", "-", ROUNDS);
        Ok(())
    }

    /// Time from the word "go" to the last byte.
    async fn measure(&self, way: Way, print: &str, bytes: usize, lines: Option<u64>) -> Result<Taken> {
        let mut check = Check { bytes: 0, numbers: lines.map(|_| Numbers::default()) };
        let target = if way == Way::File { " >/tmp/out; echo x >/bench/done" } else { "" };
        let script = format!("cat /bench/go; {print}{target}");
        let container = self.container(way, &script).await?;
        let cpu = engine_cpu_seconds()?;
        let seconds = match way {
            Way::Attach => {
                let mut output = self.attach(&container).await?;
                self.start(&container).await?;
                let begun = self.go().await?;
                while check.bytes < bytes {
                    check.take(&output.next().await.context("the attach ended early")??.into_bytes());
                }
                begun.elapsed()
            }
            Way::AttachCommand => {
                let mut command = Command::new("docker");
                command.args(["start", "--attach", &container]).stdin(Stdio::null()).stdout(Stdio::piped());
                let mut child = command.spawn()?;
                let mut output = child.stdout.take().context("the pipe was asked for")?;
                let begun = self.go().await?;
                let (taken, begun) = tokio::task::spawn_blocking(move || {
                    let mut buffer = vec![0; 256 * 1024];
                    while check.bytes < bytes {
                        match output.read(&mut buffer) {
                            Ok(0) | Err(_) => break,
                            Ok(count) => check.take(&buffer[..count]),
                        }
                    }
                    (check, begun.elapsed())
                })
                .await?;
                check = taken;
                child.wait()?;
                begun
            }
            Way::Socket => {
                let listener = self.listen()?;
                self.start(&container).await?;
                let mut worker = Worker::accept(&listener, self.pid(&container).await?).await?;
                worker.begin(&script, 0).await?;
                let begun = self.go().await?;
                // The end may come with the last of the output.
                while check.bytes < bytes && worker.read(|output| check.take(output)).await? {}
                begun.elapsed()
            }
            Way::File => {
                self.start(&container).await?;
                let begun = self.go().await?;
                let done = self.dir.path().join("done");
                tokio::task::spawn_blocking(move || fs::read(done)).await??;
                check = Check { bytes, numbers: None };
                begun.elapsed()
            }
        };
        let engine_cpu_seconds = engine_cpu_seconds()? - cpu;
        self.remove(&container).await?;
        ensure!(check.bytes == bytes, "{} of {bytes} bytes arrived", check.bytes);
        if let Some(numbers) = check.numbers {
            ensure!(Some(numbers.next - 1) == lines && numbers.gaps == 0, "the lines are not whole");
        }
        Ok(Taken { seconds: seconds.as_secs_f64(), engine_cpu_seconds })
    }

    /// Lines that are lost when the reader is away for a while in the midst of them.
    async fn loss(&self) -> Result<()> {
        let print = format!("for i in $(seq 1 {FEW_LINES}); do echo $i; usleep 30000; done");
        let (mut attach, mut socket) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            attach.push(tokio::time::timeout(STUCK, self.lost_by_attach(&print)).await??);
            socket.push(tokio::time::timeout(STUCK, self.lost_by_socket(&print)).await??);
        }
        println!("lines lost of {FEW_LINES} while the reader is away for {} ms:", AWAY.as_millis());
        println!("  attach {attach:?}\n  init and socket {socket:?}");
        ensure!(socket.iter().all(|lost| *lost == 0), "init loses nothing");
        Ok(())
    }

    async fn lost_by_attach(&self, print: &str) -> Result<u64> {
        let container = self.container(Way::Attach, &format!("cat /bench/go; {print}")).await?;
        let mut output = self.attach(&container).await?;
        self.start(&container).await?;
        self.go().await?;
        let mut numbers = Numbers::default();
        while numbers.seen < 10 {
            numbers.take(&output.next().await.context("the attach ended early")??.into_bytes());
        }
        drop(output);
        tokio::time::sleep(AWAY).await;
        let mut output = self.attach(&container).await?;
        while let Some(piece) = output.next().await {
            numbers.take(&piece?.into_bytes());
        }
        self.remove(&container).await?;
        Ok(FEW_LINES - numbers.seen)
    }

    async fn lost_by_socket(&self, print: &str) -> Result<u64> {
        let script = format!("cat /bench/go; {print}");
        let container = self.container(Way::Socket, &script).await?;
        let listener = self.listen()?;
        self.start(&container).await?;
        let pid = self.pid(&container).await?;
        let mut worker = Worker::accept(&listener, pid).await?;
        worker.begin(&script, 0).await?;
        self.go().await?;
        let mut numbers = Numbers::default();
        while numbers.seen < 10 {
            ensure!(worker.read(|output| numbers.take(output)).await?, "init ended early");
        }
        let next = worker.next;
        drop((worker, listener));
        tokio::time::sleep(AWAY).await;
        let listener = self.listen()?;
        let mut worker = Worker::accept(&listener, pid).await?;
        worker.begin(&script, next).await?;
        while worker.read(|output| numbers.take(output)).await? {}
        self.remove(&container).await?;
        Ok(FEW_LINES - numbers.seen)
    }

    async fn container(&self, way: Way, script: &str) -> Result<String> {
        let bench = self.dir.path().display();
        let mut binds = vec![format!("{bench}:/bench")];
        let command: Vec<String> = if way == Way::Socket {
            binds.push(format!("{bench}:/run/buildyard:ro"));
            binds.push(format!("{}:/run/buildyard-init:ro", self.init.display()));
            vec!["/run/buildyard-init".to_owned(), format!("/run/buildyard/{SOCKET_NAME}")]
        } else {
            ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
        };
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            user: Some("1000:1000".to_owned()),
            cmd: Some(command),
            host_config: Some(HostConfig {
                binds: Some(binds),
                network_mode: Some("none".to_owned()),
                cap_drop: Some(vec!["ALL".to_owned()]),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let name = format!("buildyard-bench-channel-{}", std::process::id());
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        Ok(self.docker.create_container(Some(options), body).await?.id)
    }

    async fn attach(
        &self,
        container: &str,
    ) -> Result<impl futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Unpin> {
        let options = AttachContainerOptionsBuilder::new().stdout(true).stderr(true).stream(true).build();
        Ok(self.docker.attach_container(container, Some(options)).await?.output)
    }

    async fn start(&self, container: &str) -> Result<()> {
        Ok(self.docker.start_container(container, None::<StartContainerOptions>).await?)
    }

    async fn pid(&self, container: &str) -> Result<i32> {
        let state = self.docker.inspect_container(container, None).await?.state.context("a state")?;
        Ok(i32::try_from(state.pid.context("it runs")?)?)
    }

    async fn remove(&self, container: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        Ok(self.docker.remove_container(container, Some(options)).await?)
    }

    fn listen(&self) -> Result<UnixListener> {
        let path = self.dir.path().join(SOCKET_NAME);
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    /// Waits until the script is ready, lets it go on, and says when that was.
    async fn go(&self) -> Result<Instant> {
        let path = self.dir.path().join("go");
        let open = move || fs::OpenOptions::new().write(true).open(path).map(drop);
        tokio::task::spawn_blocking(open).await??;
        Ok(Instant::now())
    }
}

/// The worker's end of the channel, as short as it can be.
struct Worker {
    stream: UnixStream,
    inbox: Vec<u8>,
    next: u64,
}

impl Worker {
    async fn accept(listener: &UnixListener, init: i32) -> Result<Self> {
        let (stream, _) = listener.accept().await?;
        ensure!(peer_pid(stream.as_fd())? == init, "a stranger connected");
        Ok(Self { stream, inbox: Vec::with_capacity(512 * 1024), next: 0 })
    }

    async fn begin(&mut self, script: &str, next: u64) -> Result<()> {
        let step = Step {
            script: script.to_owned(),
            shell: Shell::Sh,
            dir: String::new(),
            env: Vec::new(),
            timeout_ms: None,
        };
        let job = Job {
            key: "bench".to_owned(),
            steps: vec![step],
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            workdir: "/".to_owned(),
            workspace: "/".to_owned(),
            log_cap_bytes: u64::MAX,
            timeout_ms: u64::MAX,
            grace_ms: 0,
            lease_ms: u64::MAX,
            linger_ms: 60_000,
        };
        self.next = next;
        self.send(&[ToInit::Job(Box::new(job)), ToInit::Resume { next }]).await
    }

    async fn send(&mut self, frames: &[ToInit]) -> Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.encode(&mut bytes)?;
        }
        Ok(self.stream.write_all(&bytes).await?)
    }

    /// Reads once, hands the output on and acknowledges it. False after the end.
    async fn read(&mut self, mut output: impl FnMut(&[u8])) -> Result<bool> {
        if self.stream.read_buf(&mut self.inbox).await? == 0 {
            return Ok(false);
        }
        let (mut at, mut ended) = (0, false);
        while let Some((value, length)) = FromInit::decode(&self.inbox[at..])? {
            at += length;
            if let FromInit::Numbered { sequence, frame, .. } = value {
                ensure!(sequence == self.next, "frame {sequence} instead of {}", self.next);
                self.next += 1;
                match frame {
                    Frame::Output { bytes, .. } => output(bytes),
                    Frame::End(_) => ended = true,
                    Frame::StepStart { .. } | Frame::StepEnd(_) => {}
                }
            }
        }
        self.inbox.drain(..at);
        self.inbox.reserve(256 * 1024);
        self.send(&[ToInit::Ack { next: self.next }]).await?;
        Ok(!ended)
    }
}

/// What has arrived.
struct Check {
    bytes: usize,
    numbers: Option<Numbers>,
}

impl Check {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if let Some(numbers) = &mut self.numbers {
            numbers.take(bytes);
        }
    }
}

/// Numbered lines, counted from 1.
struct Numbers {
    line: u64,
    next: u64,
    seen: u64,
    gaps: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { line: 0, next: 1, seen: 0, gaps: 0 }
    }
}

impl Numbers {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    self.gaps += u64::from(self.line != self.next);
                    self.next = self.line + 1;
                    self.seen += 1;
                    self.line = 0;
                }
                digit => self.line = self.line * 10 + u64::from(digit.wrapping_sub(b'0')),
            }
        }
    }
}

fn numbered(lines: u64) -> String {
    (1..=lines).map(|line| format!("{line}\n")).collect()
}

/// Makes the image from the host's static busybox, unless it is there.
async fn ensure_image() -> Result<()> {
    let mut look = Command::new("docker");
    look.args(["image", "inspect", IMAGE]).stdout(Stdio::null()).stderr(Stdio::null());
    if look.status()?.success() {
        return Ok(());
    }
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        bail!("no image {IMAGE} and no /bin/busybox to make it from: apt-get install busybox-static");
    }
    let root = tempfile::tempdir()?;
    fs::set_permissions(root.path(), Permissions::from_mode(0o755))?;
    for dir in ["bin", "tmp"] {
        fs::create_dir(root.path().join(dir))?;
    }
    fs::set_permissions(root.path().join("tmp"), Permissions::from_mode(0o1777))?;
    fs::copy(busybox, root.path().join("bin/busybox"))?;
    for name in ["sh", "cat", "seq", "usleep", "true", "ls"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name))?;
    }
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root.path()).args(["--owner=0", "--group=0", "-c", "."]).stdout(Stdio::piped());
    let mut tar = tar.spawn()?;
    let archive = tar.stdout.take().context("the pipe was asked for")?;
    let import =
        Command::new("docker").args(["import", "-", IMAGE]).stdin(archive).stdout(Stdio::null()).status()?;
    ensure!(tar.wait()?.success() && import.success(), "docker import");
    Ok(())
}

/// Processor time that engine, container runtime and shims have used since they started.
fn engine_cpu_seconds() -> Result<f64> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")) else {
            continue;
        };
        if name == "dockerd" || name.starts_with("containerd") {
            let fields = rest.split(' ').skip(11).take(2);
            ticks += fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
    }
    // Linux counts these in hundredths of a second everywhere.
    Ok(ticks as f64 / 100.0)
}
