use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::protocol::VERSION;

fn usages() -> impl Strategy<Value = Usage> {
    (any::<u64>(), any::<u64>()).prop_map(|(cpu_ms, peak_rss_bytes)| Usage { cpu_ms, peak_rss_bytes })
}

fn disks() -> impl Strategy<Value = Option<DiskLow>> {
    option::of((any::<u64>(), any::<u64>()))
        .prop_map(|low| low.map(|(free_bytes, free_inodes)| DiskLow { free_bytes, free_inodes }))
}

fn hows() -> impl Strategy<Value = StepHow> {
    let faults = prop_oneof![
        Just(SpawnFault::Shell),
        Just(SpawnFault::Dir),
        Just(SpawnFault::Argument),
        Just(SpawnFault::Process)
    ];
    prop_oneof![
        any::<i32>().prop_map(StepHow::Exit),
        any::<i32>().prop_map(StepHow::Signal),
        (faults, any::<i32>()).prop_map(|(fault, errno)| StepHow::SpawnFailed { fault, errno }),
        Just(StepHow::TimedOut),
        Just(StepHow::Stopped),
    ]
}

fn whys() -> impl Strategy<Value = EndWhy> {
    prop_oneof![
        Just(EndWhy::Completed),
        any::<u16>().prop_map(|step| EndWhy::StepFailed { step }),
        Just(EndWhy::JobTimedOut),
        any::<u16>().prop_map(|step| EndWhy::StepTimedOut { step }),
        any::<u8>().prop_map(|cause| EndWhy::Stopped { cause }),
        Just(EndWhy::LogCap),
        Just(EndWhy::Fenced),
    ]
}

fn envs() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((any::<String>(), any::<String>()), 0..4)
}

fn steps() -> impl Strategy<Value = Step> {
    let shells = prop_oneof![Just(Shell::Sh), Just(Shell::Bash)];
    let texts = (any::<String>(), any::<String>());
    (texts, shells, envs(), option::of(any::<u64>()))
        .prop_map(|((script, dir), shell, env, timeout_ms)| Step { script, shell, dir, env, timeout_ms })
}

fn jobs() -> impl Strategy<Value = Job> {
    let texts = (any::<String>(), any::<String>(), any::<String>());
    (texts, envs(), vec(steps(), 0..4), any::<[u64; 5]>()).prop_map(
        |(
            (key, workdir, workspace),
            env,
            steps,
            [log_cap_bytes, timeout_ms, grace_ms, lease_ms, linger_ms],
        )| {
            Job {
                key,
                steps,
                env,
                workdir,
                workspace,
                log_cap_bytes,
                timeout_ms,
                grace_ms,
                lease_ms,
                linger_ms,
            }
        },
    )
}

fn to_init() -> impl Strategy<Value = ToInit> {
    prop_oneof![
        jobs().prop_map(|job| ToInit::Job(Box::new(job))),
        any::<u64>().prop_map(|next| ToInit::Resume { next }),
        any::<u64>().prop_map(|next| ToInit::Ack { next }),
        any::<u64>().prop_map(|lease_ms| ToInit::KeepAlive { lease_ms }),
        (any::<u8>(), any::<u64>()).prop_map(|(cause, grace_ms)| ToInit::Stop { cause, grace_ms }),
        Just(ToInit::Fence),
    ]
}

fn hellos() -> impl Strategy<Value = Hello> {
    let states = prop_oneof![Just(InitState::Waiting), Just(InitState::Running), Just(InitState::Done)];
    (states, any::<String>(), any::<u64>(), any::<u64>()).prop_map(|(state, job, first_kept, next)| Hello {
        version: VERSION,
        state,
        job,
        first_kept,
        next,
    })
}

/// Output apart, because it borrows.
fn frames() -> impl Strategy<Value = Frame<'static>> {
    prop_oneof![
        any::<u16>().prop_map(|step| Frame::StepStart { step }),
        (any::<u16>(), hows(), usages(), disks())
            .prop_map(|(step, how, usage, disk)| Frame::StepEnd(StepEnd { step, how, usage, disk })),
        (whys(), usages(), any::<u64>(), disks()).prop_map(|(why, usage, log_bytes, disk)| Frame::End(End {
            why,
            usage,
            log_bytes,
            disk
        })),
    ]
}

/// Encodes a value, and holds every cut of it against what a decoder has to say of it.
fn reads_back_at_any_cut(value: &FromInit<'_>) -> Result<(), TestCaseError> {
    let mut bytes = Vec::new();
    prop_assert_eq!(value.encode(&mut bytes), Ok(()));
    let length = bytes.len();
    for cut in 0..length {
        prop_assert_eq!(FromInit::decode(&bytes[..cut]), Ok(None));
    }
    bytes.extend_from_slice(b"what comes after");
    prop_assert_eq!(FromInit::decode(&bytes), Ok(Some((value.clone(), length))));
    Ok(())
}

proptest! {
    #[test]
    fn what_the_worker_says_reads_back_at_any_cut(value in to_init(), cut: proptest::sample::Index) {
        let mut bytes = Vec::new();
        prop_assert_eq!(value.encode(&mut bytes), Ok(()));
        let length = bytes.len();
        prop_assert_eq!(ToInit::decode(&bytes[..cut.index(length)]), Ok(None));
        bytes.extend_from_slice(b"what comes after");
        prop_assert_eq!(ToInit::decode(&bytes), Ok(Some((value, length))));
    }

    #[test]
    fn what_happened_reads_back_at_any_cut(sequence: u64, at_ms: u64, frame in frames()) {
        reads_back_at_any_cut(&FromInit::Numbered { sequence, at_ms, frame })?;
    }

    #[test]
    fn hello_reads_back_at_any_cut(hello in hellos()) {
        reads_back_at_any_cut(&FromInit::Hello(hello))?;
    }

    #[test]
    fn output_reads_back_at_any_cut(sequence: u64, at_ms: u64, step: u16, stderr: bool, bytes in vec(any::<u8>(), 1..300)) {
        let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
        let value = FromInit::Numbered { sequence, at_ms, frame: Frame::Output { step, stream, bytes: &bytes } };
        reads_back_at_any_cut(&value)?;
        let mut whole = Vec::new();
        prop_assert_eq!(value.encode(&mut whole), Ok(()));
        let header = output_header(sequence, at_ms, step, stream, bytes.len());
        prop_assert_eq!(&whole[..OUTPUT_HEADER_BYTES], &header[..], "the shortcut and the codec are one format");
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = FromInit::decode(&bytes);
        let _ = ToInit::decode(&bytes);
    }

    #[test]
    fn no_damage_to_a_frame_makes_a_decoder_panic(value in to_init(), at: proptest::sample::Index, byte: u8) {
        let mut bytes = Vec::new();
        prop_assert_eq!(value.encode(&mut bytes), Ok(()));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(Some((_, length))) = ToInit::decode(&bytes) {
            prop_assert!(length <= bytes.len());
        }
    }

    #[test]
    fn random_bodies_of_every_kind_do_not_panic(kind in 0u8..8, body in vec(any::<u8>(), 0..120)) {
        let mut bytes = (body.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&body);
        let _ = FromInit::decode(&bytes);
        let _ = ToInit::decode(&bytes);
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    for (length, limit) in
        [(u32::MAX, MAX_FROM_INIT_BYTES), (MAX_FROM_INIT_BYTES as u32, MAX_FROM_INIT_BYTES)]
    {
        let bytes = length.to_le_bytes();
        assert_eq!(
            FromInit::decode(&bytes),
            Err(ProtocolError::TooLong { bytes: length as usize + 4, limit }),
            "{length}"
        );
    }
    assert!(matches!(ToInit::decode(&u32::MAX.to_le_bytes()), Err(ProtocolError::TooLong { .. })));
    assert_eq!(ToInit::decode(&0u32.to_le_bytes()), Err(ProtocolError::Short));
}

#[test]
fn what_is_too_long_is_refused_and_leaves_nothing() {
    let bytes = vec![b'x'; MAX_OUTPUT_BYTES + 1];
    let frame = Frame::Output { step: 0, stream: Stream::Stdout, bytes: &bytes };
    let mut out = b"before".to_vec();
    let refused = FromInit::Numbered { sequence: 0, at_ms: 0, frame }.encode(&mut out);
    assert!(matches!(refused, Err(ProtocolError::TooLong { .. })));
    let frame = Frame::Output { step: 0, stream: Stream::Stdout, bytes: &bytes[1..] };
    assert_eq!(out, b"before");
    assert_eq!(FromInit::Numbered { sequence: 0, at_ms: 0, frame }.encode(&mut out), Ok(()));
    assert_eq!(out.len(), 6 + MAX_FROM_INIT_BYTES);
}

#[test]
fn a_count_is_not_believed() {
    // A job whose environment says four thousand million entries and holds none.
    let mut bytes = Vec::new();
    framed(&mut bytes, JOB, MAX_TO_INIT_BYTES, |out| {
        put_text(out, "key");
        put_u32(out, u32::MAX);
    })
    .expect("fits");
    assert_eq!(ToInit::decode(&bytes), Err(ProtocolError::Short));
}
