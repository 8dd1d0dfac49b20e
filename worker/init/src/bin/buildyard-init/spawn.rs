//! Starting a step: its shell as a child, with pipes for what it writes.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use buildyard_init::protocol::{Job, Shell, SpawnFault, Step};
use libc::{c_char, c_int};

use crate::{guard, sys};

/// Longest script that is handed over as an argument: the kernel takes 128 KiB for one, its end included. A longer
/// one is read by the shell from memory.
const MAX_ARGUMENT_BYTES: usize = 128 * 1024 - 1;
/// The descriptor that holds a longer script. The shell opens it by its path, so a step that uses the number for
/// itself loses nothing.
const SCRIPT_FD: c_int = 99;
/// How much rather a step's processes shall die than init when memory is short: then the step fails with a signal
/// that init reports, instead of the container going without a word. The greatest there is: init has the container's own,
/// and may be larger than each of many small processes. Anybody may raise it.
const OOM_SCORE: &str = "1000";
/// Where shells are looked for before the step's own `PATH`.
const SH: [&str; 1] = ["/bin"];
const BASH: [&str; 3] = ["/bin", "/usr/bin", "/usr/local/bin"];

/// A step that runs.
pub(crate) struct Spawned {
    /// Process id of its shell.
    pub(crate) pid: i32,
    /// What it writes to standard output.
    pub(crate) stdout: OwnedFd,
    /// What it writes to standard error.
    pub(crate) stderr: OwnedFd,
}

/// Why a step does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpawnError {
    /// What was wrong.
    pub(crate) fault: SpawnFault,
    /// The system's error number.
    pub(crate) errno: i32,
}

impl SpawnError {
    fn new(fault: SpawnFault, error: &io::Error) -> Self {
        Self { fault, errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
    }
}

/// Everything that the child needs, made before there is one.
struct Plan {
    programs: Vec<CString>,
    arguments: Vec<CString>,
    env: Vec<CString>,
    dir: CString,
    script: Option<OwnedFd>,
}

/// Starts a step. Returns when its shell is executed, or could not be.
pub(crate) fn spawn(job: &Job, step: &Step) -> Result<Spawned, SpawnError> {
    let plan = Plan::new(job, step)?;
    let process = |error: io::Error| SpawnError::new(SpawnFault::Process, &error);
    let (stdout, stdout_writer) = sys::output_pipe().map_err(process)?;
    let (stderr, stderr_writer) = sys::output_pipe().map_err(process)?;
    let (status, status_writer) = sys::pipe().map_err(process)?;
    // SAFETY: init has one thread, so the child may go on as an ordinary program.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(process(io::Error::last_os_error()));
    }
    if pid == 0 {
        let Err(error) = become_step(&plan, &stdout_writer, &stderr_writer);
        report(&status_writer, error);
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(127) };
    }
    drop((stdout_writer, stderr_writer, status_writer));
    // Ends when the shell is executed, which closes the other end. No code of the job runs before that.
    match wait_for_report(&status) {
        None => Ok(Spawned { pid, stdout, stderr }),
        Some(error) => Err(error),
    }
}

impl Plan {
    fn new(job: &Job, step: &Step) -> Result<Self, SpawnError> {
        let mut env: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in job.env.iter().chain(&step.env) {
            env.insert(name, value);
        }
        let (arguments, script) = shell_arguments(step)?;
        Ok(Self {
            programs: programs(step.shell, env.get("PATH").copied().unwrap_or_default())?,
            arguments,
            env: env.iter().map(|(name, value)| text(format!("{name}={value}"))).collect::<Result<_, _>>()?,
            dir: text(format!("{}/{}", job.workdir, step.dir))?,
            script,
        })
    }
}

fn text(text: impl Into<Vec<u8>>) -> Result<CString, SpawnError> {
    CString::new(text).map_err(|_| SpawnError { fault: SpawnFault::Argument, errno: libc::EINVAL })
}

/// Where the shell may be, in the order of trying.
fn programs(shell: Shell, path: &str) -> Result<Vec<CString>, SpawnError> {
    let (name, fixed) = match shell {
        Shell::Sh => ("sh", &SH[..]),
        Shell::Bash => ("bash", &BASH[..]),
    };
    let mut programs = Vec::new();
    // A relative folder in PATH would be looked for in the step's own folder: a checkout could bring its shell.
    for dir in fixed.iter().copied().chain(path.split(':').filter(|dir| dir.starts_with('/'))) {
        let program = text(format!("{dir}/{name}"))?;
        if !programs.contains(&program) {
            programs.push(program);
        }
    }
    Ok(programs)
}

/// `sh -e -c SCRIPT`: the shell's own name stays `$0`, and its messages read as everybody knows them.
fn shell_arguments(step: &Step) -> Result<(Vec<CString>, Option<OwnedFd>), SpawnError> {
    let before: &[&str] = match step.shell {
        Shell::Sh => &["sh", "-e", "-c"],
        Shell::Bash => &["bash", "-eo", "pipefail", "-c"],
    };
    let mut arguments = before.iter().map(|word| text(*word)).collect::<Result<Vec<_>, _>>()?;
    if step.script.len() <= MAX_ARGUMENT_BYTES {
        arguments.push(text(step.script.as_str())?);
        return Ok((arguments, None));
    }
    let script =
        memory_file(step.script.as_bytes()).map_err(|error| SpawnError::new(SpawnFault::Argument, &error))?;
    arguments.push(text(format!(". /proc/self/fd/{SCRIPT_FD}"))?);
    Ok((arguments, Some(script)))
}

/// A file in memory that nobody can change any more.
fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a live string with an end.
    let create = |flags| unsafe { libc::memfd_create(c"script".as_ptr(), flags) };
    // Kernels before 6.3 do not know that a file may say it is no program; hardened ones insist on it.
    let fd = match create(flags | libc::MFD_NOEXEC_SEAL) {
        -1 => create(flags),
        fd => fd,
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made it for us alone.
    let mut file = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    io::Write::write_all(&mut file, content)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: takes a descriptor and numbers. Without seals a step could only spoil its own script.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    Ok(file.into())
}

/// The child's way to its shell. Returns only if there is none.
fn become_step(
    plan: &Plan,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<std::convert::Infallible, SpawnError> {
    let process = |error: io::Error| SpawnError::new(SpawnFault::Process, &error);
    sys::release_signals();
    // SAFETY: takes nothing. Cannot fail: a fresh child leads no group.
    unsafe { libc::setsid() };
    prefer_for_oom();
    place(stdout, 1).and_then(|()| place(stderr, 2)).map_err(process)?;
    if let Some(script) = &plan.script {
        place(script, SCRIPT_FD).map_err(process)?;
    }
    // A kernel without seccomp, or an engine that forbids it, still runs jobs.
    let _ = guard::install();
    // SAFETY: the path is a live string with an end.
    if unsafe { libc::chdir(plan.dir.as_ptr()) } != 0 {
        return Err(SpawnError::new(SpawnFault::Dir, &io::Error::last_os_error()));
    }
    let (arguments, env) = (pointers(&plan.arguments), pointers(&plan.env));
    let mut last = SpawnError { fault: SpawnFault::Shell, errno: libc::ENOENT };
    for program in &plan.programs {
        // SAFETY: all pointers are to live strings with an end, and each list ends with a null.
        unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), env.as_ptr()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // The other places would not take the arguments either.
            Some(libc::E2BIG) => return Err(SpawnError::new(SpawnFault::Argument, &error)),
            Some(_) | None => last = SpawnError::new(SpawnFault::Shell, &error),
        }
    }
    Err(last)
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| CStr::as_ptr(text)).chain([ptr::null()]).collect()
}

/// Makes `fd` known as `number`, and open after exec.
fn place(fd: &OwnedFd, number: c_int) -> io::Result<()> {
    // SAFETY: takes numbers. Nothing in the child uses `number` for anything else: 1 and 2 are /dev/null.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn prefer_for_oom() {
    // Files below /proc/self belong to root while the process is not dumpable. Nobody else runs who could use the
    // moment: leftovers of the step before are dead.
    if sys::set_dumpable(true).is_ok() {
        let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        let _ = sys::set_dumpable(false);
    }
}

fn fault_code(fault: SpawnFault) -> i32 {
    match fault {
        SpawnFault::Shell => 1,
        SpawnFault::Dir => 2,
        SpawnFault::Argument => 3,
        SpawnFault::Process => 4,
    }
}

fn report(to: &OwnedFd, error: SpawnError) {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&fault_code(error.fault).to_le_bytes());
    bytes[4..].copy_from_slice(&error.errno.to_le_bytes());
    // SAFETY: the buffer is as long as is said.
    unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
}

fn wait_for_report(from: &OwnedFd) -> Option<SpawnError> {
    let mut bytes = [0; 8];
    match sys::read(from.as_fd(), &mut bytes) {
        Ok(Some(8)) => {}
        // Closed without a word: the shell is executed, or the child was killed and will be reaped as such.
        Ok(_) | Err(_) => return None,
    }
    let [f0, f1, f2, f3, errno @ ..] = bytes;
    let code = i32::from_le_bytes([f0, f1, f2, f3]);
    let fault = [SpawnFault::Shell, SpawnFault::Dir, SpawnFault::Argument]
        .into_iter()
        .find(|fault| fault_code(*fault) == code)
        .unwrap_or(SpawnFault::Process);
    Some(SpawnError { fault, errno: i32::from_le_bytes(errno) })
}
