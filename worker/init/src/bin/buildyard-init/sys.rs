//! The system calls of init, each as a safe function. Nothing in here decides anything.

use std::ffi::CStr;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use buildyard_init::protocol::{DiskLow, Usage};
use libc::c_int;

/// A pipe holds this much where the system lets an ordinary user ask for it (`fs.pipe-max-size`).
const PIPE_BYTES: c_int = 1 << 20;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the call that returned it has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn clock_ms(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; it cannot fail for the clocks that are asked for here.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}

/// Milliseconds since the host started, its sleep included: a lease runs out while the host sleeps.
pub(crate) fn now_ms() -> u64 {
    clock_ms(libc::CLOCK_BOOTTIME)
}

/// Milliseconds since 1970 by the host's clock.
pub(crate) fn wall_ms() -> u64 {
    clock_ms(libc::CLOCK_REALTIME)
}

/// Makes the process unreadable to others of the same user: no ptrace, no /proc/1/mem, fd, environ, even for
/// uid 0, which would need `CAP_SYS_PTRACE`.
pub(crate) fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, c_int::from(dumpable), 0, 0, 0) }).map(drop)
}

/// Closes everything but standard input, output and error.
pub(crate) fn close_inherited() {
    // SAFETY: nothing owns these descriptors yet; main calls this before it opens any.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } == 0 {
        return;
    }
    // Kernels before 5.9 do not know the call, and seccomp profiles of that time refuse it.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: as above. The listing's own descriptor is closed already, which is then an error without effect.
        unsafe { libc::close(fd) };
    }
}

/// Points standard input, output and error to /dev/null.
pub(crate) fn null_stdio() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for fd in 0..=2 {
        // SAFETY: replaces descriptors that the standard library does not own.
        check(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
    }
    Ok(())
}

/// Blocks `SIGCHLD` and `SIGTERM` and gives a descriptor that tells of them; ignores everything else that can
/// be ignored. What a fault raises keeps its default, or a fault would never end.
pub(crate) fn take_signals() -> io::Result<OwnedFd> {
    for number in 1..=libc::SIGRTMAX() {
        match number {
            libc::SIGKILL | libc::SIGSTOP | libc::SIGCHLD | libc::SIGTERM => {}
            libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGABRT | libc::SIGTRAP => {}
            // SAFETY: sets no handler. The two numbers that libc keeps for itself are refused without effect.
            _ => drop(unsafe { libc::signal(number, libc::SIG_IGN) }),
        }
    }
    // SAFETY: a zeroed set is a valid argument of sigemptyset, which fills it in.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        owned(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// The number of the next signal that arrived, if any.
pub(crate) fn next_signal(signals: BorrowedFd<'_>) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has the size that is given; every bit pattern is a valid value of it.
    let (count, info) = unsafe {
        let count = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size);
        (count, info.assume_init())
    };
    (count == size as isize).then_some(info.ssi_signo as i32)
}

/// Undoes [`take_signals`] in a child: the program that it becomes finds signals as a shell expects them.
pub(crate) fn release_signals() {
    // SAFETY: as in `take_signals`.
    unsafe {
        for number in 1..=libc::SIGRTMAX() {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// A pipe, its reading end first, both closed on exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// A pipe for a step's output: large where it may be, and its reading end does not block.
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    // SAFETY: both take a descriptor and numbers. Flags belong to the open file, so only this end is changed.
    unsafe {
        // May be refused when the user has many pipes already; then it is slower and nothing else.
        libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES);
        check(libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK))?;
    }
    Ok((reader, writer))
}

/// Reads what is there. `None` if nothing is, 0 at the end.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the buffer is as long as is said.
        let result = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match check_size(result) {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends what the socket takes. `None` if it takes nothing now.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the buffer is as long as is said.
        let result =
            unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        match check_size(result) {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Connects to the Unix socket at `path`. Never waits: on a Unix socket it succeeds or fails at once.
pub(crate) fn connect(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: zero is a valid value of every field.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers.
    let socket = owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the address is as long as is said, and lives through the call.
    check(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// Waits until one of `fds` has news or `timeout_ms` has passed.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout_ms: u64) {
    let timeout = c_int::try_from(timeout_ms).unwrap_or(c_int::MAX);
    // SAFETY: the slice is as long as is said. Being interrupted is the same as no news.
    if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) } < 0 {
        fds.iter_mut().for_each(|fd| fd.revents = 0);
    }
}

/// Sends a signal to every process of the container but this one.
pub(crate) fn kill_all(signal: c_int) {
    // SAFETY: takes numbers. As process 1 of a PID namespace, which main has made sure of, -1 means all others in
    // that namespace. No one left is no error here.
    unsafe { libc::kill(-1, signal) };
}

/// What [`reap`] found.
pub(crate) enum Reaped {
    /// A process ended, by itself (its exit code) or by a signal.
    Ended { pid: i32, how: Ended, usage: Usage },
    /// A process had made this one its debugger, and was let go.
    Detached,
    /// There are processes, and none has ended.
    NotYet,
    /// No process is left: each has ended and every orphan had come to this one.
    NobodyLeft,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Takes note of one process that ended.
pub(crate) fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: zero is a valid value of every field.
    let mut rusage: libc::rusage = unsafe { zeroed() };
    // `__WALL`: also children that announce their end by another signal than SIGCHLD.
    // SAFETY: writes one status and one rusage.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG | libc::__WALL, &raw mut rusage) };
    if pid == 0 {
        return Reaped::NotYet;
    }
    if pid < 0 {
        return Reaped::NobodyLeft;
    }
    let how = if libc::WIFEXITED(status) {
        Ended::Exit(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        detach(pid, status);
        return Reaped::Detached;
    };
    let cpu_us = [rusage.ru_utime, rusage.ru_stime]
        .iter()
        .map(|time| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64)
        .sum::<u64>();
    let usage = Usage { cpu_ms: cpu_us / 1_000, peak_rss_bytes: rusage.ru_maxrss as u64 * 1024 };
    Reaped::Ended { pid, how, usage }
}

/// A step that calls `PTRACE_TRACEME` makes its parent, which is init, its debugger, and would stop at its next
/// signal for ever.
fn detach(pid: i32, status: c_int) {
    let signal = match libc::WSTOPSIG(status) & 0x7f {
        libc::SIGTRAP => 0,
        signal => signal,
    };
    // SAFETY: takes numbers.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, signal as libc::c_long) };
}

/// What is free on the file system of `path`, for an ordinary user.
pub(crate) fn room(path: &CStr) -> Option<DiskLow> {
    // SAFETY: zero is a valid value of every field; the call writes one statvfs.
    let (result, stat) = unsafe {
        let mut stat: libc::statvfs = zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    (result == 0).then(|| DiskLow {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        // File systems without a fixed number of files say that they have none at all.
        free_inodes: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
    })
}
