//! The numbered frames that the worker has not acknowledged.
//!
//! They lie encoded, one behind the other, in a ring of [`WINDOW_BYTES`]: a pipe is read straight into it and
//! the socket is written straight from it. Positions count bytes and never wrap; a frame never crosses the
//! ring's end, so in front of one that would, the rest of the ring stays empty (the pad).

use buildyard_init::protocol::{
    Frame, FromInit, MAX_OUTPUT_BYTES, OUTPUT_HEADER_BYTES, Stream, WINDOW_BYTES, output_header,
};

/// Kept free by output, so that the few small frames that end a step and the job always find room.
const RESERVE_BYTES: usize = 4096;
/// Output waits until this much fits: many tiny frames would cost more than they gain.
const MIN_OUTPUT_BYTES: usize = 16 * 1024;
/// What has to be free for output.
const OUTPUT_NEEDS_BYTES: usize = RESERVE_BYTES + OUTPUT_HEADER_BYTES + MIN_OUTPUT_BYTES;

/// Frames that are made and not acknowledged, and how far they are sent.
pub(crate) struct Window {
    ring: Vec<u8>,
    /// Number and position of the oldest frame that is held.
    first_kept: u64,
    start: u64,
    /// Number and position of the frame that will be made next.
    next: u64,
    end: u64,
    /// Number and position of the first frame that is not wholly sent, and what of it is.
    unsent: u64,
    sending: u64,
    sent_of_it: usize,
    /// Where the pad begins, while one lies between `start` and `end`. There is never more than one: the two
    /// are not further apart than the ring is long.
    pad: Option<u64>,
}

/// The worker named a frame that it cannot mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfWindow;

impl Window {
    pub(crate) fn new() -> Self {
        Self::with_capacity(WINDOW_BYTES)
    }

    fn with_capacity(capacity: usize) -> Self {
        Self {
            // Zero pages appear when they are touched, so a quiet job costs only what it fills.
            ring: vec![0; capacity],
            first_kept: 0,
            start: 0,
            next: 0,
            end: 0,
            unsent: 0,
            sending: 0,
            sent_of_it: 0,
            pad: None,
        }
    }

    /// Number of the oldest frame that is held.
    pub(crate) fn first_kept(&self) -> u64 {
        self.first_kept
    }

    /// Number of the frame that will be made next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether every frame is acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.first_kept == self.next
    }

    /// Whether output finds room.
    pub(crate) fn takes_output(&self) -> bool {
        self.gap(OUTPUT_NEEDS_BYTES).is_some()
    }

    /// Whether the frames that begin and end a step, and the job, find room.
    pub(crate) fn has_reserve(&self) -> bool {
        self.gap(RESERVE_BYTES).is_some()
    }

    /// Calls `fill` with room for at least one and at most `limit` bytes of output, and makes a frame of as many
    /// as it says it filled in. Without room `fill` is not called.
    pub(crate) fn output<E>(
        &mut self,
        at_ms: u64,
        step: u16,
        stream: Stream,
        limit: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Option<usize>, E> {
        let Some((position, length)) = self.gap(OUTPUT_NEEDS_BYTES) else {
            return Ok(None);
        };
        // The reserve stays in this very gap: a gap beyond the pad may not be there.
        let room = (length - RESERVE_BYTES - OUTPUT_HEADER_BYTES).min(MAX_OUTPUT_BYTES).min(limit);
        let at = self.offset(position);
        let body = at + OUTPUT_HEADER_BYTES;
        let filled = fill(&mut self.ring[body..body + room])?.min(room);
        if filled > 0 {
            let header = output_header(self.next, at_ms, step, stream, filled);
            self.ring[at..body].copy_from_slice(&header);
            self.append(position, OUTPUT_HEADER_BYTES + filled);
        }
        Ok(Some(filled))
    }

    /// Adds a frame that is not output. [`Window::has_reserve`] was true before the step that it is about.
    pub(crate) fn push(&mut self, at_ms: u64, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        FromInit::Numbered { sequence: self.next, at_ms, frame }
            .encode(&mut bytes)
            .expect("a frame without output has a few dozen bytes");
        let (position, _) = self.gap(bytes.len()).expect("output leaves the reserve free");
        let at = self.offset(position);
        self.ring[at..at + bytes.len()].copy_from_slice(&bytes);
        self.append(position, bytes.len());
    }

    /// What is to be sent next, as far as it lies in one piece; empty when all is sent.
    pub(crate) fn unsent(&self) -> &[u8] {
        if self.unsent == self.next {
            return &[];
        }
        let ring_end = (self.sending + 1).next_multiple_of(self.ring.len() as u64);
        let end = match self.pad {
            Some(pad) if self.sending < pad => pad,
            Some(_) | None => self.end.min(ring_end),
        };
        let at = self.offset(self.sending);
        &self.ring[at + self.sent_of_it..at + (end - self.sending) as usize]
    }

    /// Takes note that so many bytes of [`Window::unsent`] are sent.
    pub(crate) fn sent(&mut self, count: usize) {
        self.sent_of_it += count;
        while self.unsent < self.next {
            let length = self.length_at(self.sending);
            if self.sent_of_it < length {
                return;
            }
            self.sent_of_it -= length;
            self.sending = self.behind(self.sending);
            self.unsent += 1;
        }
    }

    /// Drops every frame below `next`. Only what was sent on this connection can be acknowledged.
    pub(crate) fn acknowledge(&mut self, next: u64) -> Result<(), OutOfWindow> {
        if next > self.unsent {
            return Err(OutOfWindow);
        }
        self.drop_below(next);
        Ok(())
    }

    /// Drops every frame below `next` and sends again from there on, or from the oldest that is left.
    pub(crate) fn resume(&mut self, next: u64) -> Result<(), OutOfWindow> {
        if next > self.next {
            return Err(OutOfWindow);
        }
        // Whatever was sent before went to a connection that is gone.
        self.unsent = self.next;
        self.sending = self.end;
        self.sent_of_it = 0;
        self.drop_below(next);
        self.unsent = self.first_kept;
        self.sending = self.start;
        Ok(())
    }

    fn drop_below(&mut self, next: u64) {
        while self.first_kept < next {
            let behind = self.behind(self.start);
            if self.pad.is_some_and(|pad| pad < behind) {
                self.pad = None;
            }
            self.start = behind;
            self.first_kept += 1;
        }
        if self.is_empty() {
            // From the ring's beginning again: a quiet job stays within its first pages.
            (self.start, self.end, self.sending, self.sent_of_it, self.pad) = (0, 0, 0, 0, None);
        }
    }

    /// Position and length of the next piece of the ring that is free and has at least `needed` bytes.
    fn gap(&self, needed: usize) -> Option<(u64, usize)> {
        let free = self.ring.len() - (self.end - self.start) as usize;
        let tail = self.ring.len() - self.offset(self.end);
        if tail.min(free) >= needed {
            return Some((self.end, tail.min(free)));
        }
        let beyond = free.checked_sub(tail)?;
        (beyond >= needed).then_some((self.end + tail as u64, beyond))
    }

    /// A frame of `length` bytes was written at `position`, which [`Window::gap`] gave.
    fn append(&mut self, position: u64, length: usize) {
        if position != self.end {
            self.pad = Some(self.end);
            if self.unsent == self.next {
                self.sending = position;
            }
        }
        self.end = position + length as u64;
        self.next += 1;
    }

    fn offset(&self, position: u64) -> usize {
        (position % self.ring.len() as u64) as usize
    }

    fn length_at(&self, position: u64) -> usize {
        let at = self.offset(position);
        let mut length = [0; 4];
        length.copy_from_slice(&self.ring[at..at + 4]);
        4 + u32::from_le_bytes(length) as usize
    }

    /// Position of the frame behind the one at `position`, or of the end.
    fn behind(&self, position: u64) -> u64 {
        let behind = position + self.length_at(position) as u64;
        if self.pad == Some(behind) { behind.next_multiple_of(self.ring.len() as u64) } else { behind }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use buildyard_init::protocol::{End, EndWhy, Usage};
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: usize = 64 * 1024;

    /// What may happen to a window.
    #[derive(Debug, Clone)]
    enum Act {
        Output(usize),
        Push,
        Send(usize),
        /// Acknowledges this share (in 256ths) of the frames that are sent.
        Ack(u8),
        /// The connection breaks; the worker has this share of what was sent.
        Reconnect(u8),
    }

    fn acts() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (1usize..30_000).prop_map(Act::Output),
            1 => Just(Act::Push),
            3 => (1usize..40_000).prop_map(Act::Send),
            2 => any::<u8>().prop_map(Act::Ack),
            1 => any::<u8>().prop_map(Act::Reconnect),
        ]
    }

    fn share(from: u64, to: u64, part: u8) -> u64 {
        from + (to - from) * u64::from(part) / 255
    }

    /// A worker that keeps what it is sent and insists on every number in turn.
    #[derive(Default)]
    struct Reader {
        inbox: Vec<u8>,
        next: u64,
        output: Vec<u8>,
    }

    impl Reader {
        fn take(&mut self, bytes: &[u8]) {
            self.inbox.extend_from_slice(bytes);
            let mut at = 0;
            while let Some((value, length)) = FromInit::decode(&self.inbox[at..]).expect("whole frames") {
                at += length;
                let FromInit::Numbered { sequence, frame, .. } = value else { panic!("{value:?}") };
                // What was sent on an earlier connection may come again.
                if sequence < self.next {
                    continue;
                }
                assert_eq!(sequence, self.next, "no gap");
                self.next += 1;
                if let Frame::Output { bytes, .. } = frame {
                    self.output.extend_from_slice(bytes);
                }
            }
            self.inbox.drain(..at);
        }
    }

    fn put(window: &mut Window, count: usize, counter: &mut u64, expected: &mut Vec<u8>) {
        let Ok(_) = window.output(7, 0, Stream::Stdout, count, |room| {
            for byte in room.iter_mut() {
                *byte = (*counter).wrapping_mul(31) as u8;
                expected.push(*byte);
                *counter += 1;
            }
            Ok::<_, Infallible>(room.len())
        });
    }

    fn step_start() -> Frame<'static> {
        Frame::StepStart { step: 3 }
    }

    proptest! {
        #[test]
        fn every_byte_arrives_once_and_in_order(acts in proptest::collection::vec(acts(), 1..400)) {
            let mut window = Window::with_capacity(CAPACITY);
            let (mut reader, mut expected, mut counter) = (Reader::default(), Vec::new(), 0);
            let mut pushed = 0;
            for act in acts {
                match act {
                    Act::Output(count) => put(&mut window, count, &mut counter, &mut expected),
                    Act::Push if window.has_reserve() => {
                        window.push(7, step_start());
                        pushed += 1;
                    }
                    Act::Push => {}
                    Act::Send(count) => {
                        let bytes = window.unsent();
                        let bytes = &bytes[..bytes.len().min(count)];
                        reader.take(bytes);
                        let count = bytes.len();
                        window.sent(count);
                    }
                    Act::Ack(part) => {
                        let next = share(window.first_kept(), reader.next.min(window.unsent), part);
                        prop_assert_eq!(window.acknowledge(next), Ok(()));
                        prop_assert_eq!(window.first_kept(), next);
                    }
                    Act::Reconnect(part) => {
                        let next = share(window.first_kept(), reader.next, part);
                        reader.inbox.clear();
                        prop_assert_eq!(window.resume(next), Ok(()));
                    }
                }
                prop_assert!(window.end - window.start <= CAPACITY as u64);
            }
            while !window.unsent().is_empty() {
                let bytes = window.unsent();
                reader.take(bytes);
                let count = bytes.len();
                window.sent(count);
            }
            prop_assert_eq!(reader.next, window.next());
            prop_assert_eq!(window.acknowledge(reader.next), Ok(()));
            prop_assert!(window.is_empty());
            prop_assert_eq!(reader.output, expected);
            prop_assert!(pushed <= reader.next);
        }
    }

    #[test]
    fn a_window_full_of_output_still_takes_the_end() {
        let mut window = Window::with_capacity(CAPACITY);
        let (mut counter, mut expected) = (0, Vec::new());
        // Full, then a little acknowledged and full again, so that the free piece wanders over the ring's end.
        for _ in 0..200 {
            while window.takes_output() {
                put(&mut window, 5_000, &mut counter, &mut expected);
            }
            assert!(window.has_reserve());
            let count = window.unsent().len();
            window.sent(count);
            let next = (window.first_kept() + 1).min(window.unsent);
            window.acknowledge(next).expect("it is sent");
        }
        while window.takes_output() {
            put(&mut window, MAX_OUTPUT_BYTES, &mut counter, &mut expected);
        }
        let before = window.next();
        window.push(7, step_start());
        window.push(7, step_start());
        let end = End { why: EndWhy::Completed, usage: Usage::default(), log_bytes: counter, disk: None };
        window.push(7, Frame::End(end));
        assert_eq!(window.next(), before + 3);
    }

    #[test]
    fn frames_that_were_never_sent_cannot_be_acknowledged() {
        let mut window = Window::with_capacity(CAPACITY);
        window.push(7, step_start());
        assert_eq!(window.acknowledge(1), Err(OutOfWindow));
        assert_eq!(window.resume(2), Err(OutOfWindow));
        let count = window.unsent().len();
        window.sent(count - 1);
        assert_eq!(window.acknowledge(1), Err(OutOfWindow), "its last byte is still here");
        window.sent(1);
        assert_eq!(window.acknowledge(1), Ok(()));
        assert_eq!(window.acknowledge(0), Ok(()), "an old acknowledgement changes nothing");
        assert!(window.is_empty());
    }
}
