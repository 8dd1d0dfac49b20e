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

/// The calls of one architecture that name a process: number, and which argument names it.
struct Table {
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    arch: u32,
    /// prlimit64, setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, ioprio_set, sched_setattr.
    calls: &'static [(u32, u32)],
}

#[cfg(target_arch = "x86_64")]
const TABLES: &[Table] = &[
    Table {
        arch: 0xC000_003E,
        calls: &[
            (302, 0),
            (141, 1),
            (142, 0),
            (144, 0),
            (203, 0),
            (251, 1),
            (314, 0),
            // The same once more by their x32 numbers, which share the architecture.
            (0x4000_0000 + 302, 0),
            (0x4000_0000 + 141, 1),
            (0x4000_0000 + 142, 0),
            (0x4000_0000 + 144, 0),
            (0x4000_0000 + 203, 0),
            (0x4000_0000 + 251, 1),
            (0x4000_0000 + 314, 0),
        ],
    },
    // 32 bit programs.
    Table {
        arch: 0x4000_0003,
        calls: &[(340, 0), (97, 1), (154, 0), (156, 0), (241, 0), (289, 1), (351, 0)],
    },
];

#[cfg(target_arch = "aarch64")]
const TABLES: &[Table] = &[
    Table {
        arch: 0xC000_00B7,
        calls: &[(261, 0), (140, 1), (118, 0), (119, 0), (122, 0), (30, 1), (274, 0)],
    },
    // 32 bit programs.
    Table {
        arch: 0x4000_0028,
        calls: &[(369, 0), (97, 1), (154, 0), (156, 0), (241, 0), (314, 1), (380, 0)],
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
        // Load, the calls, and the last `allow`.
        let length = 2 + 5 * table.calls.len();
        program.push(unless_equal(table.arch, length as u8));
        program.push(load(NUMBER_AT));
        for (number, argument) in table.calls {
            program.push(unless_equal(*number, 4));
            program.push(load(ARGUMENTS_AT + 8 * argument));
            program.push(unless_equal(1, 1));
            program.push(answer(SECCOMP_RET_ERRNO | libc::EPERM as u32));
            program.push(answer(SECCOMP_RET_ALLOW));
        }
        program.push(answer(SECCOMP_RET_ALLOW));
    }
    program.push(answer(SECCOMP_RET_ALLOW));
    program
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
    fn only_what_names_process_1_is_refused() {
        let refused = SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for table in TABLES {
            for (number, argument) in table.calls {
                let mut arguments = [7, 7];
                assert_eq!(run(table.arch, *number, arguments), SECCOMP_RET_ALLOW, "{number}");
                arguments[*argument as usize] = 1;
                assert_eq!(run(table.arch, *number, arguments), refused, "{number}");
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
