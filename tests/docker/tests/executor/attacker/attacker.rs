//! Runs inside of a job and tries to pass for its init. Prints `EFFECT: …` for whatever works.
//!
//! Built by the test without cargo, statically, so that it runs in any image.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SOCKET: &str = "/.buildyard/ctl/ctl.sock";
const PTRACE_ATTACH: i32 = 16;
const PTRACE_SEIZE: i32 = 0x4206;

unsafe extern "C" {
    fn ptrace(request: i32, pid: i32, address: usize, data: usize) -> isize;
    fn process_vm_readv(
        pid: i32,
        local: *const [usize; 2],
        n: usize,
        remote: *const [usize; 2],
        m: usize,
        flags: usize,
    ) -> isize;
    fn setpriority(which: i32, who: u32, priority: i32) -> i32;
    fn syscall(number: i64, ...) -> i64;
}

#[cfg(target_arch = "x86_64")]
const IOPRIO_SET: i64 = 251;
#[cfg(target_arch = "aarch64")]
const IOPRIO_SET: i64 = 30;
/// The class of who waits for everybody else.
const IDLE: i32 = 3 << 13;

/// Init may be meant by itself, by its group, or by its user.
fn slow_init_down() {
    for (which, who) in [(0, 1), (1, 0), (1, 1), (2, 0)] {
        if unsafe { setpriority(which, who, 19) } == 0 {
            println!("EFFECT: setpriority of {which} {who}");
        }
        if unsafe { syscall(IOPRIO_SET, which + 1, who, IDLE) } == 0 {
            println!("EFFECT: ioprio_set of {} {who}", which + 1);
        }
    }
}

fn connect(forged: &[u8]) -> bool {
    let Ok(mut stream) = UnixStream::connect(SOCKET) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    // The worker may have closed it already.
    let _ = stream.write_all(forged);
    let mut answer = Vec::new();
    let mut byte = [0; 256];
    while let Ok(count) = stream.read(&mut byte) {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&byte[..count]);
    }
    if !answer.is_empty() {
        println!("EFFECT: the worker answered with {} bytes", answer.len());
    }
    true
}

fn crowd(forged: &'static [u8]) -> ! {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                loop {
                    connect(forged);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| drop(thread.join()));
    std::process::exit(1)
}

fn main() {
    let forged: &'static [u8] = Box::leak(std::fs::read("/workspace/forged").unwrap().into_boxed_slice());
    if std::env::args().nth(1).as_deref() == Some("crowd") {
        crowd(forged);
    }
    let connected = (0..20).filter(|_| connect(forged)).count();
    println!("connected {connected} times");
    for request in [PTRACE_ATTACH, PTRACE_SEIZE] {
        if unsafe { ptrace(request, 1, 0, 0) } == 0 {
            println!("EFFECT: traces process 1");
        }
    }
    slow_init_down();
    let mut bytes = [0_u8; 16];
    let local = [bytes.as_mut_ptr() as usize, bytes.len()];
    // Where programs usually are; a process that may not be read answers the same for every address.
    let remote = [0x40_0000, bytes.len()];
    let read = unsafe { process_vm_readv(1, &local, 1, &remote, 1, 0) };
    let why = std::io::Error::last_os_error().raw_os_error();
    if read >= 0 || why == Some(14) {
        println!("EFFECT: may read the memory of process 1");
    }
}
