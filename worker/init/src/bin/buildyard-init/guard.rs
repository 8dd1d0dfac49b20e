//! What a step may not do to process 1: change its limits, or its share of the processor.
//!
//! The kernel lets any process do that to another of the same user. A processor-time limit of one second would
//! end init, and the container with it, by a signal that the kernel does not withhold; an idle priority would let
//! a busy job put off its own time limit. Memory and descriptors of init are closed by it being non-dumpable, and
//! signals by it being process 1; this is the rest. It is a seccomp filter that all processes of a step inherit.

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    sock_filter, sock_fprog,
};

/// The calls of one architecture that change another process: number, and which arguments are refused.
struct Table {
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    arch: u32,
    /// prlimit64, setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, ioprio_set, sched_setattr.
    calls: &'static [(u32, Refused)],
}

/// Arguments with the values that reach process 1.
type Refused = &'static [(u32, u32)];
/// It is named.
const PROCESS: Refused = &[(0, 1)];
/// It is named, or all of a group (1) or of a user (2) are meant, and it is of the job's own user.
const PRIORITY: Refused = &[(1, 1), (0, 1), (0, 2)];
/// The same for reads and writes, where group and user have other numbers.
const IO_PRIORITY: Refused = &[(1, 1), (0, 2), (0, 3)];

#[cfg(target_arch = "x86_64")]
const TABLES: &[Table] = &[
    Table {
        arch: 0xC000_003E,
        calls: &[
            (302, PROCESS),
            (141, PRIORITY),
            (142, PROCESS),
            (144, PROCESS),
            (203, PROCESS),
            (251, IO_PRIORITY),
            (314, PROCESS),
            // The same once more by their x32 numbers, which share the architecture.
            (0x4000_0000 + 302, PROCESS),
            (0x4000_0000 + 141, PRIORITY),
            (0x4000_0000 + 142, PROCESS),
            (0x4000_0000 + 144, PROCESS),
            (0x4000_0000 + 203, PROCESS),
            (0x4000_0000 + 251, IO_PRIORITY),
            (0x4000_0000 + 314, PROCESS),
        ],
    },
    // 32 bit programs.
    Table {
        arch: 0x4000_0003,
        calls: &[
            (340, PROCESS),
            (97, PRIORITY),
            (154, PROCESS),
            (156, PROCESS),
            (241, PROCESS),
            (289, IO_PRIORITY),
            (351, PROCESS),
        ],
    },
];

#[cfg(target_arch = "aarch64")]
const TABLES: &[Table] = &[
    Table {
        arch: 0xC000_00B7,
        calls: &[
            (261, PROCESS),
            (140, PRIORITY),
            (118, PROCESS),
            (119, PROCESS),
            (122, PROCESS),
            (30, IO_PRIORITY),
            (274, PROCESS),
        ],
    },
    // 32 bit programs.
    Table {
        arch: 0x4000_0028,
        calls: &[
            (369, PROCESS),
            (97, PRIORITY),
            (154, PROCESS),
            (156, PROCESS),
            (241, PROCESS),
            (314, IO_PRIORITY),
            (380, PROCESS),
        ],
    },
];

/// Elsewhere a job can slow its own init down, or end it and with it itself.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const TABLES: &[Table] = &[];

/// Puts the calling process and all it starts under the filter. Needs `no_new_privs`, which is set here too: it is
/// part of what a job may rely on, also where the engine was not told.
pub(crate) fn install() -> io::Result<()> {
    let mut filter = program();
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is as long as is said, before the call returns.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Offsets in `struct seccomp_data`; an argument's low half comes first on both architectures.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCH_AT)];
    for table in TABLES {
        let calls: Vec<sock_filter> =
            table.calls.iter().flat_map(|(number, refused)| call(*number, refused)).collect();
        // The calls, and a load before and an `allow` behind them.
        let length = u8::try_from(calls.len() + 2).expect("a jump reaches over a table");
        program.push(unless_equal(table.arch, length));
        program.push(load(NUMBER_AT));
        program.extend(calls);
        program.push(answer(SECCOMP_RET_ALLOW));
    }
    program.push(answer(SECCOMP_RET_ALLOW));
    program
}

/// What is done about one call. It ends the program, or leaves the number loaded for the next.
fn call(number: u32, refused: Refused) -> Vec<sock_filter> {
    let mut body = Vec::new();
    for (argument, value) in refused {
        body.push(load(ARGUMENTS_AT + 8 * argument));
        body.push(unless_equal(*value, 1));
        body.push(answer(SECCOMP_RET_ERRNO | libc::EPERM as u32));
    }
    body.push(answer(SECCOMP_RET_ALLOW));
    body.insert(0, unless_equal(number, body.len() as u8));
    body
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

fn unless_equal(value: u32, skip: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf: skip, k: value }
}

fn answer(value: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers to a call, carried out as the kernel would.
    fn run(arch: u32, number: u32, arguments: [u32; 2]) -> u32 {
        let program = program();
        let (mut at, mut value) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            match u32::from(op.code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    value = match op.k {
                        NUMBER_AT => number,
                        ARCH_AT => arch,
                        offset => arguments[((offset - ARGUMENTS_AT) / 8) as usize],
                    }
                }
                code if code == BPF_JMP | BPF_JEQ | BPF_K => {
                    at += usize::from(if value == op.k { op.jt } else { op.jf })
                }
                code if code == BPF_RET | BPF_K => return op.k,
                code => panic!("{code}"),
            }
        }
    }

    #[test]
    fn only_what_reaches_process_1_is_refused() {
        let refused = SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for table in TABLES {
            for (number, list) in table.calls {
                assert_eq!(run(table.arch, *number, [0, 7]), SECCOMP_RET_ALLOW, "{number}");
                for (argument, value) in *list {
                    let mut arguments = [0, 7];
                    arguments[*argument as usize] = *value;
                    assert_eq!(run(table.arch, *number, arguments), refused, "{number}: {arguments:?}");
                }
            }
            assert_eq!(run(table.arch, 0, [1, 1]), SECCOMP_RET_ALLOW);
        }
        assert_eq!(run(0, 302, [1, 1]), SECCOMP_RET_ALLOW, "no architecture of ours");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_numbers_are_those_of_this_system() {
        let own = &TABLES[0].calls[..7];
        let numbers = [
            libc::SYS_prlimit64,
            libc::SYS_setpriority,
            libc::SYS_sched_setparam,
            libc::SYS_sched_setscheduler,
            libc::SYS_sched_setaffinity,
            libc::SYS_ioprio_set,
            libc::SYS_sched_setattr,
        ];
        assert!(own.iter().map(|(number, _)| i64::from(*number)).eq(numbers));
    }
}
