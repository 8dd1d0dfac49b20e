//! Everything that a process of a job may try against process 1 of its container.
//!
//! It runs inside the container, as this test program itself, and prints a line for each attempt: `refused`, or
//! `SUCCEEDED` where the kernel let it do what it must not be able to. Signals are always accepted and must have no
//! effect; that init goes on is for the test outside to see.

use std::ffi::c_long;
use std::io::{Error, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

/// Where the attacker finds the worker's socket. It does nothing without: then it is not in a container.
pub(crate) const SOCKET_VARIABLE: &str = "ATTACKED_SOCKET";
/// How the test program becomes the attacker.
pub(crate) const ARGUMENTS: &str = "attacker::attack --exact --ignored --nocapture --test-threads=1";

const INIT: c_long = 1;
const NULL: c_long = 0;

#[test]
#[ignore = "the attacks are tried inside a container"]
fn attack() {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else { return };
    println!();
    calls();
    files();
    signals();
    in_one_thread(forged_termination);
    signals_by_descriptor();
    traced_by_init();
    connect(socket.as_ref());
    println!("attacks done");
}

/// Says whether a call was refused.
fn tell(name: &str, result: c_long) {
    if result < 0 {
        println!("{name}: refused: {}", Error::last_os_error());
    } else {
        println!("{name}: SUCCEEDED");
    }
}

fn call(name: &str, number: c_long, arguments: [c_long; 6]) {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: pointers among the arguments are to live values, or null.
    tell(name, unsafe { libc::syscall(number, a, b, c, d, e, f) });
}

fn calls() {
    let mut buffer = [0u8; 64];
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: 0x40_0000 as *mut _, iov_len: 64 };
    let (local, remote) = (&raw const local as c_long, &raw const remote as c_long);
    call("ptrace attach", libc::SYS_ptrace, [c_long::from(libc::PTRACE_ATTACH), INIT, 0, 0, 0, 0]);
    call("ptrace seize", libc::SYS_ptrace, [c_long::from(libc::PTRACE_SEIZE), INIT, 0, 0, 0, 0]);
    call("process_vm_readv", libc::SYS_process_vm_readv, [INIT, local, 1, remote, 1, 0]);
    call("process_vm_writev", libc::SYS_process_vm_writev, [INIT, local, 1, remote, 1, 0]);
    call("kcmp", libc::SYS_kcmp, [INIT, c_long::from(std::process::id()), 0, 0, 0, 0]);
    call("move_pages", libc::SYS_move_pages, [INIT, 0, NULL, NULL, NULL, 0]);
    // SAFETY: takes numbers.
    let handle = unsafe { libc::syscall(libc::SYS_pidfd_open, INIT, 0) };
    for fd in 0..12 {
        call(&format!("pidfd_getfd {fd}"), libc::SYS_pidfd_getfd, [handle, fd, 0, 0, 0, 0]);
    }

    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    let limit = &raw const limit as c_long;
    for (name, resource) in [
        ("cpu", libc::RLIMIT_CPU),
        ("files", libc::RLIMIT_NOFILE),
        ("memory", libc::RLIMIT_AS),
        ("processes", libc::RLIMIT_NPROC),
        ("data", libc::RLIMIT_DATA),
        ("signals", libc::RLIMIT_SIGPENDING),
    ] {
        let name = format!("prlimit {name}");
        call(&name, libc::SYS_prlimit64, [INIT, c_long::from(resource), limit, NULL, 0, 0]);
    }
    let parameter = 0i32;
    let parameter = &raw const parameter as c_long;
    let attributes: [u32; 12] = [48, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attributes = attributes.as_ptr() as c_long;
    let one_cpu = 1u64;
    let one_cpu = &raw const one_cpu as c_long;
    call("setpriority", libc::SYS_setpriority, [0, INIT, 19, 0, 0, 0]);
    call("setpriority of a group", libc::SYS_setpriority, [1, 0, 19, 0, 0, 0]);
    call("setpriority of a user", libc::SYS_setpriority, [2, 0, 19, 0, 0, 0]);
    call("ioprio_set of a group", libc::SYS_ioprio_set, [2, 0, 3 << 13, 0, 0, 0]);
    call("ioprio_set of a user", libc::SYS_ioprio_set, [3, 0, 3 << 13, 0, 0, 0]);
    call("sched_setscheduler", libc::SYS_sched_setscheduler, [INIT, 5, parameter, 0, 0, 0]);
    call("sched_setparam", libc::SYS_sched_setparam, [INIT, parameter, 0, 0, 0, 0]);
    call("sched_setattr", libc::SYS_sched_setattr, [INIT, attributes, 0, 0, 0, 0]);
    call("sched_setaffinity", libc::SYS_sched_setaffinity, [INIT, 8, one_cpu, 0, 0, 0]);
    call("ioprio_set", libc::SYS_ioprio_set, [1, INIT, 3 << 13, 0, 0, 0]);
    #[cfg(target_arch = "x86_64")]
    call(
        "prlimit by its x32 number",
        0x4000_0000 + libc::SYS_prlimit64,
        [INIT, c_long::from(libc::RLIMIT_CPU), limit, NULL, 0, 0],
    );
}

fn files() {
    for name in ["mem", "environ", "maps", "auxv", "syscall", "stack", "io", "fd/0", "fd/3", "fd/4", "fd/5"] {
        let path = format!("/proc/1/{name}");
        let mut byte = [0];
        match std::fs::File::open(&path).and_then(|mut file| file.read(&mut byte)) {
            Err(error) => println!("{path}: refused: {error}"),
            Ok(_) => println!("{path}: SUCCEEDED"),
        }
    }
    for name in ["exe", "cwd", "root", "fd/0", "fd/3", "fd/4"] {
        let path = format!("/proc/1/{name}");
        match std::fs::read_link(&path) {
            Err(error) => println!("link {path}: refused: {error}"),
            Ok(target) => println!("link {path}: SUCCEEDED: {}", target.display()),
        }
    }
    let path = "/proc/1/mem";
    match std::fs::OpenOptions::new().write(true).open(path) {
        Err(error) => println!("write {path}: refused: {error}"),
        Ok(_) => println!("write {path}: SUCCEEDED"),
    }
    // These belong to uid 0, who may write them. The first only clears marks of the memory's use; the second makes
    // init the first to die for lack of memory, and the job with it.
    let _ = std::fs::write("/proc/1/clear_refs", "1");
    let _ = std::fs::write("/proc/1/oom_score_adj", "1000");
}

fn signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: takes numbers.
        unsafe {
            libc::kill(1, signal);
            libc::syscall(libc::SYS_tgkill, 1, 1, signal);
        }
    }
    println!("every signal sent");
}

/// Runs `act` in a process of its own, which has one thread: a signal for the process cannot meet another thread that
/// does not block it.
fn in_one_thread(act: fn()) {
    // SAFETY: libtest's other thread waits for this one and holds no lock that `act` needs.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            act();
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        assert_eq!(status, 0);
    }
}

/// Sends TERM without a name of its sender, as one from outside of the container is: the queue that would hold
/// the name is full.
fn forged_termination() {
    // SAFETY: zero is a valid value of all these types, and the calls read what is as long as is said.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGRTMIN());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
        let mut queued = 0;
        while queued < 1_000_000 && libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value) == 0 {
            queued += 1;
        }
        let sent = libc::sigqueue(1, libc::SIGTERM, value);
        println!("TERM sent with {queued} signals queued: {sent}");
    }
}

/// Has the kernel send signals to process 1 when a pipe becomes readable.
fn signals_by_descriptor() {
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGSTOP] {
        let mut ends = [0; 2];
        // SAFETY: the calls take numbers, and a place for two descriptors.
        unsafe {
            libc::pipe(ends.as_mut_ptr());
            libc::fcntl(ends[0], libc::F_SETFL, libc::O_ASYNC);
            libc::fcntl(ends[0], 10, signal); // F_SETSIG
            libc::fcntl(ends[0], libc::F_SETOWN, 1);
            libc::write(ends[1], b"x".as_ptr().cast(), 1);
        }
    }
    println!("signals sent by descriptors");
}

/// Makes init the debugger of a process of ours: first of one that stops at its next signal, then of one at its exec.
/// Both have to go on. The process has to be init's own child, so its parent ends first.
fn traced_by_init() {
    for stop_itself in [true, false] {
        let mark = format!("traced-{stop_itself}");
        // SAFETY: libtest's other thread waits for this one; the children make system calls and exec.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                if libc::fork() == 0 {
                    while libc::getppid() != 1 {
                        libc::sched_yield();
                    }
                    libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                    if stop_itself {
                        libc::raise(libc::SIGWINCH);
                    }
                    let _ = Command::new("touch").arg(&mark).status();
                    libc::_exit(0);
                }
                libc::_exit(0);
            }
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        let mut went_on = false;
        for _ in 0..10_000 {
            went_on = std::path::Path::new(&mark).exists();
            if went_on {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        println!("traced by init: {}", if went_on { "went on" } else { "stuck, so it SUCCEEDED" });
    }
}

/// Opens the worker's socket and speaks as if it were init.
fn connect(socket: &std::path::Path) {
    use buildyard_init::protocol::{End, EndWhy, Frame, FromInit, Hello, InitState, Usage, VERSION};

    let hello =
        Hello { version: VERSION, state: InitState::Done, job: "forged".to_owned(), first_kept: 0, next: 1 };
    let end = End { why: EndWhy::Completed, usage: Usage::default(), log_bytes: 0, disk: None };
    let mut bytes = Vec::new();
    for frame in
        [FromInit::Hello(hello), FromInit::Numbered { sequence: 0, at_ms: 0, frame: Frame::End(end) }]
    {
        frame.encode(&mut bytes).expect("fits");
    }
    for _ in 0..3 {
        let told = UnixStream::connect(socket).and_then(|mut stream| stream.write_all(&bytes));
        println!("connected and told a forged end: {told:?}");
    }
}
