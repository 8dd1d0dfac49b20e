//! Frames to bytes and back.

use std::fmt;

use super::{
    DiskLow, End, EndWhy, Frame, FromInit, Hello, InitState, Job, MAX_FROM_INIT_BYTES, MAX_OUTPUT_BYTES,
    MAX_STEPS, MAX_TO_INIT_BYTES, OUTPUT_HEADER_BYTES, Shell, SpawnFault, Step, StepEnd, StepHow, Stream,
    ToInit, Usage,
};

/// Why bytes are no frame, or a value cannot become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// The frame is longer than its direction allows.
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// A job of too many steps.
    TooManySteps(usize),
    /// The kind, or a choice within a frame, has a number that is not known.
    Unknown {
        /// What the number stands for.
        what: &'static str,
        /// The number.
        code: u8,
    },
    /// The frame ends before its content does.
    Short,
    /// The frame goes on after its content.
    Trailing,
    /// A text is not UTF-8.
    Text,
    /// An output frame without output.
    Empty,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::TooLong { bytes, limit } => {
                write!(f, "a frame of {bytes} bytes; at most {limit} are allowed")
            }
            ProtocolError::TooManySteps(count) => {
                write!(f, "a job of {count} steps; at most {MAX_STEPS} are allowed")
            }
            ProtocolError::Unknown { what, code } => write!(f, "unknown {what} {code}"),
            ProtocolError::Short => f.write_str("a frame ends before its content does"),
            ProtocolError::Trailing => f.write_str("a frame goes on after its content"),
            ProtocolError::Text => f.write_str("a text in a frame is not UTF-8"),
            ProtocolError::Empty => f.write_str("an output frame without output"),
        }
    }
}

impl std::error::Error for ProtocolError {}

const HELLO: u8 = 1;
const OUTPUT: u8 = 2;
const STEP_START: u8 = 3;
const STEP_END: u8 = 4;
const END: u8 = 5;

const JOB: u8 = 1;
const RESUME: u8 = 2;
const ACK: u8 = 3;
const KEEP_ALIVE: u8 = 4;
const STOP: u8 = 5;
const FENCE: u8 = 6;

const LENGTH_BYTES: usize = 4;

/// The bytes in front of `length` bytes of output: init reads a pipe straight behind them.
pub fn output_header(
    sequence: u64,
    at_ms: u64,
    step: u16,
    stream: Stream,
    length: usize,
) -> [u8; OUTPUT_HEADER_BYTES] {
    debug_assert!((1..=MAX_OUTPUT_BYTES).contains(&length));
    let mut header = [0; OUTPUT_HEADER_BYTES];
    let rest = (OUTPUT_HEADER_BYTES - LENGTH_BYTES + length) as u32;
    header[0..4].copy_from_slice(&rest.to_le_bytes());
    header[4] = OUTPUT;
    header[5..13].copy_from_slice(&sequence.to_le_bytes());
    header[13..21].copy_from_slice(&at_ms.to_le_bytes());
    header[21..23].copy_from_slice(&step.to_le_bytes());
    header[23] = stream_code(stream);
    header
}

impl FromInit<'_> {
    /// Appends the frame to `out`.
    ///
    /// Output beyond [`MAX_OUTPUT_BYTES`], and a [`Hello::job`] that no [`Job`] could have brought, are errors;
    /// then `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match self {
            FromInit::Hello(hello) => framed(out, HELLO, MAX_FROM_INIT_BYTES, |out| put_hello(out, hello)),
            FromInit::Numbered { sequence, at_ms, frame } => {
                let kind = match frame {
                    Frame::Output { .. } => OUTPUT,
                    Frame::StepStart { .. } => STEP_START,
                    Frame::StepEnd(_) => STEP_END,
                    Frame::End(_) => END,
                };
                if matches!(frame, Frame::Output { bytes: [], .. }) {
                    return Err(ProtocolError::Empty);
                }
                framed(out, kind, MAX_FROM_INIT_BYTES, |out| {
                    put_u64(out, *sequence);
                    put_u64(out, *at_ms);
                    put_frame(out, frame);
                })
            }
        }
    }
}

impl<'b> FromInit<'b> {
    /// Reads the first frame of `bytes` and how many bytes it took; `None` when it is not all there yet.
    pub fn decode(bytes: &'b [u8]) -> Result<Option<(FromInit<'b>, usize)>, ProtocolError> {
        let Some((kind, mut body, length)) = split(bytes, MAX_FROM_INIT_BYTES)? else {
            return Ok(None);
        };
        let read = &mut body;
        let value = match kind {
            HELLO => FromInit::Hello(get_hello(read)?),
            OUTPUT | STEP_START | STEP_END | END => FromInit::Numbered {
                sequence: read.u64()?,
                at_ms: read.u64()?,
                frame: get_frame(kind, read)?,
            },
            code => return Err(ProtocolError::Unknown { what: "frame from init", code }),
        };
        body.done()?;
        Ok(Some((value, length)))
    }
}

impl ToInit {
    /// Appends the frame to `out`. Only a job can be too long or have too many steps; then `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        let limit = MAX_TO_INIT_BYTES;
        match self {
            ToInit::Job(job) => {
                if job.steps.len() > MAX_STEPS {
                    return Err(ProtocolError::TooManySteps(job.steps.len()));
                }
                framed(out, JOB, limit, |out| put_job(out, job))
            }
            ToInit::Resume { next } => framed(out, RESUME, limit, |out| put_u64(out, *next)),
            ToInit::Ack { next } => framed(out, ACK, limit, |out| put_u64(out, *next)),
            ToInit::KeepAlive { lease_ms } => framed(out, KEEP_ALIVE, limit, |out| put_u64(out, *lease_ms)),
            ToInit::Stop { cause, grace_ms } => framed(out, STOP, limit, |out| {
                out.push(*cause);
                put_u64(out, *grace_ms);
            }),
            ToInit::Fence => framed(out, FENCE, limit, |_| ()),
        }
    }

    /// Reads the first frame of `bytes` and how many bytes it took; `None` when it is not all there yet.
    pub fn decode(bytes: &[u8]) -> Result<Option<(ToInit, usize)>, ProtocolError> {
        let Some((kind, mut body, length)) = split(bytes, MAX_TO_INIT_BYTES)? else {
            return Ok(None);
        };
        let read = &mut body;
        let value = match kind {
            JOB => ToInit::Job(Box::new(get_job(read)?)),
            RESUME => ToInit::Resume { next: read.u64()? },
            ACK => ToInit::Ack { next: read.u64()? },
            KEEP_ALIVE => ToInit::KeepAlive { lease_ms: read.u64()? },
            STOP => ToInit::Stop { cause: read.u8()?, grace_ms: read.u64()? },
            FENCE => ToInit::Fence,
            code => return Err(ProtocolError::Unknown { what: "frame to init", code }),
        };
        body.done()?;
        Ok(Some((value, length)))
    }
}

/// Appends length, kind and body; takes them back when they are too long.
fn framed(
    out: &mut Vec<u8>,
    kind: u8,
    limit: usize,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<(), ProtocolError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.push(kind);
    body(out);
    let bytes = out.len() - start;
    if bytes > limit {
        out.truncate(start);
        return Err(ProtocolError::TooLong { bytes, limit });
    }
    let rest = (bytes - LENGTH_BYTES) as u32;
    out[start..start + LENGTH_BYTES].copy_from_slice(&rest.to_le_bytes());
    Ok(())
}

/// Kind, body and length of the first frame, if it is all there.
fn split(bytes: &[u8], limit: usize) -> Result<Option<(u8, Reader<'_>, usize)>, ProtocolError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > limit - LENGTH_BYTES {
        return Err(ProtocolError::TooLong { bytes: length.saturating_add(LENGTH_BYTES), limit });
    }
    if length == 0 {
        return Err(ProtocolError::Short);
    }
    let Some((kind, body)) = rest.get(..length).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    Ok(Some((*kind, Reader(body), LENGTH_BYTES + length)))
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // A text beyond 4 GiB would be cut here, but the frame's own limit refuses it far below that.
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    out.extend_from_slice(&hello.version.to_le_bytes());
    out.push(match hello.state {
        InitState::Waiting => 0,
        InitState::Running => 1,
        InitState::Done => 2,
    });
    put_text(out, &hello.job);
    put_u64(out, hello.first_kept);
    put_u64(out, hello.next);
}

fn get_hello(read: &mut Reader<'_>) -> Result<Hello, ProtocolError> {
    Ok(Hello {
        version: read.u16()?,
        state: match read.u8()? {
            0 => InitState::Waiting,
            1 => InitState::Running,
            2 => InitState::Done,
            code => return Err(ProtocolError::Unknown { what: "state", code }),
        },
        job: read.text()?,
        first_kept: read.u64()?,
        next: read.u64()?,
    })
}

fn stream_code(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    }
}

fn put_frame(out: &mut Vec<u8>, frame: &Frame<'_>) {
    match frame {
        Frame::Output { step, stream, bytes } => {
            out.extend_from_slice(&step.to_le_bytes());
            out.push(stream_code(*stream));
            out.extend_from_slice(bytes);
        }
        Frame::StepStart { step } => out.extend_from_slice(&step.to_le_bytes()),
        Frame::StepEnd(end) => {
            out.extend_from_slice(&end.step.to_le_bytes());
            put_how(out, end.how);
            put_usage(out, end.usage);
            put_disk(out, end.disk);
        }
        Frame::End(end) => {
            put_why(out, end.why);
            put_usage(out, end.usage);
            put_u64(out, end.log_bytes);
            put_disk(out, end.disk);
        }
    }
}

fn get_frame<'b>(kind: u8, read: &mut Reader<'b>) -> Result<Frame<'b>, ProtocolError> {
    match kind {
        OUTPUT => {
            let step = read.u16()?;
            let stream = match read.u8()? {
                1 => Stream::Stdout,
                2 => Stream::Stderr,
                code => return Err(ProtocolError::Unknown { what: "stream", code }),
            };
            let bytes = read.rest();
            if bytes.is_empty() {
                return Err(ProtocolError::Empty);
            }
            Ok(Frame::Output { step, stream, bytes })
        }
        STEP_START => Ok(Frame::StepStart { step: read.u16()? }),
        STEP_END => Ok(Frame::StepEnd(StepEnd {
            step: read.u16()?,
            how: get_how(read)?,
            usage: get_usage(read)?,
            disk: get_disk(read)?,
        })),
        END => Ok(Frame::End(End {
            why: get_why(read)?,
            usage: get_usage(read)?,
            log_bytes: read.u64()?,
            disk: get_disk(read)?,
        })),
        code => Err(ProtocolError::Unknown { what: "frame from init", code }),
    }
}

fn put_how(out: &mut Vec<u8>, how: StepHow) {
    let (code, fault, number) = match how {
        StepHow::Exit(number) => (0, 0, number),
        StepHow::Signal(number) => (1, 0, number),
        StepHow::SpawnFailed { fault, errno } => {
            let fault = match fault {
                SpawnFault::Shell => 1,
                SpawnFault::Dir => 2,
                SpawnFault::Argument => 3,
                SpawnFault::Process => 4,
            };
            (2, fault, errno)
        }
        StepHow::TimedOut => (3, 0, 0),
        StepHow::Stopped => (4, 0, 0),
    };
    out.extend_from_slice(&[code, fault]);
    out.extend_from_slice(&number.to_le_bytes());
}

fn get_how(read: &mut Reader<'_>) -> Result<StepHow, ProtocolError> {
    let (code, fault, number) = (read.u8()?, read.u8()?, read.i32()?);
    match (code, fault) {
        (0, 0) => Ok(StepHow::Exit(number)),
        (1, 0) => Ok(StepHow::Signal(number)),
        (2, _) => {
            let fault = match fault {
                1 => SpawnFault::Shell,
                2 => SpawnFault::Dir,
                3 => SpawnFault::Argument,
                4 => SpawnFault::Process,
                code => return Err(ProtocolError::Unknown { what: "fault", code }),
            };
            Ok(StepHow::SpawnFailed { fault, errno: number })
        }
        (3, 0) => Ok(StepHow::TimedOut),
        (4, 0) => Ok(StepHow::Stopped),
        (code, _) => Err(ProtocolError::Unknown { what: "end of a step", code }),
    }
}

fn put_why(out: &mut Vec<u8>, why: EndWhy) {
    let (code, cause, step) = match why {
        EndWhy::Completed => (0, 0, 0),
        EndWhy::StepFailed { step } => (1, 0, step),
        EndWhy::JobTimedOut => (2, 0, 0),
        EndWhy::StepTimedOut { step } => (3, 0, step),
        EndWhy::Stopped { cause } => (4, cause, 0),
        EndWhy::LogCap => (5, 0, 0),
        EndWhy::Fenced => (6, 0, 0),
    };
    out.extend_from_slice(&[code, cause]);
    out.extend_from_slice(&step.to_le_bytes());
}

fn get_why(read: &mut Reader<'_>) -> Result<EndWhy, ProtocolError> {
    let (code, cause, step) = (read.u8()?, read.u8()?, read.u16()?);
    match (code, cause, step) {
        (0, 0, 0) => Ok(EndWhy::Completed),
        (1, 0, step) => Ok(EndWhy::StepFailed { step }),
        (2, 0, 0) => Ok(EndWhy::JobTimedOut),
        (3, 0, step) => Ok(EndWhy::StepTimedOut { step }),
        (4, cause, 0) => Ok(EndWhy::Stopped { cause }),
        (5, 0, 0) => Ok(EndWhy::LogCap),
        (6, 0, 0) => Ok(EndWhy::Fenced),
        (code, ..) => Err(ProtocolError::Unknown { what: "end of a job", code }),
    }
}

fn put_usage(out: &mut Vec<u8>, usage: Usage) {
    put_u64(out, usage.cpu_ms);
    put_u64(out, usage.peak_rss_bytes);
}

fn get_usage(read: &mut Reader<'_>) -> Result<Usage, ProtocolError> {
    Ok(Usage { cpu_ms: read.u64()?, peak_rss_bytes: read.u64()? })
}

fn put_disk(out: &mut Vec<u8>, disk: Option<DiskLow>) {
    out.push(u8::from(disk.is_some()));
    if let Some(disk) = disk {
        put_u64(out, disk.free_bytes);
        put_u64(out, disk.free_inodes);
    }
}

fn get_disk(read: &mut Reader<'_>) -> Result<Option<DiskLow>, ProtocolError> {
    if read.flag()? {
        Ok(Some(DiskLow { free_bytes: read.u64()?, free_inodes: read.u64()? }))
    } else {
        Ok(None)
    }
}

fn put_job(out: &mut Vec<u8>, job: &Job) {
    put_text(out, &job.key);
    put_env(out, &job.env);
    put_text(out, &job.workdir);
    put_text(out, &job.workspace);
    for number in [job.log_cap_bytes, job.timeout_ms, job.grace_ms, job.lease_ms, job.linger_ms] {
        put_u64(out, number);
    }
    put_u32(out, job.steps.len() as u32);
    for step in &job.steps {
        put_text(out, &step.script);
        out.push(match step.shell {
            Shell::Sh => 0,
            Shell::Bash => 1,
        });
        put_text(out, &step.dir);
        put_env(out, &step.env);
        out.push(u8::from(step.timeout_ms.is_some()));
        put_u64(out, step.timeout_ms.unwrap_or(0));
    }
}

fn get_job(read: &mut Reader<'_>) -> Result<Job, ProtocolError> {
    let mut job = Job {
        key: read.text()?,
        env: get_env(read)?,
        workdir: read.text()?,
        workspace: read.text()?,
        log_cap_bytes: read.u64()?,
        timeout_ms: read.u64()?,
        grace_ms: read.u64()?,
        lease_ms: read.u64()?,
        linger_ms: read.u64()?,
        steps: Vec::new(),
    };
    let count = read.u32()? as usize;
    if count > MAX_STEPS {
        return Err(ProtocolError::TooManySteps(count));
    }
    for _ in 0..count {
        job.steps.push(get_step(read)?);
    }
    Ok(job)
}

fn get_step(read: &mut Reader<'_>) -> Result<Step, ProtocolError> {
    Ok(Step {
        script: read.text()?,
        shell: match read.u8()? {
            0 => Shell::Sh,
            1 => Shell::Bash,
            code => return Err(ProtocolError::Unknown { what: "shell", code }),
        },
        dir: read.text()?,
        env: get_env(read)?,
        timeout_ms: {
            let (some, limit) = (read.flag()?, read.u64()?);
            some.then_some(limit)
        },
    })
}

fn put_env(out: &mut Vec<u8>, env: &[(String, String)]) {
    put_u32(out, env.len() as u32);
    for (name, value) in env {
        put_text(out, name);
        put_text(out, value);
    }
}

fn get_env(read: &mut Reader<'_>) -> Result<Vec<(String, String)>, ProtocolError> {
    // The count is not believed beforehand: memory grows only with bytes that are really there.
    let count = read.u32()?;
    let mut env = Vec::new();
    for _ in 0..count {
        env.push((read.text()?, read.text()?));
    }
    Ok(env)
}

/// The part of a frame that is not read yet.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(ProtocolError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, ProtocolError> {
        self.array().map(i32::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, ProtocolError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            code => Err(ProtocolError::Unknown { what: "flag", code }),
        }
    }

    fn text(&mut self) -> Result<String, ProtocolError> {
        let length = self.u32()? as usize;
        let (head, tail) = self.0.split_at_checked(length).ok_or(ProtocolError::Short)?;
        self.0 = tail;
        str::from_utf8(head).map(str::to_owned).map_err(|_| ProtocolError::Text)
    }

    fn rest(&mut self) -> &'b [u8] {
        std::mem::take(&mut self.0)
    }

    fn done(&self) -> Result<(), ProtocolError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtocolError::Trailing) }
    }
}

#[cfg(test)]
mod tests;
