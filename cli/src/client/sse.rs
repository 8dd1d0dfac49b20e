//! Reads server-sent events from bytes, however they are cut.

/// Longest event that is read. A log record holds at most 64 KiB; JSON makes six bytes of a control character.
const EVENT_LIMIT_BYTES: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// The last id that was sent, with this event or before it.
    pub(crate) id: Option<String>,
    /// Its type; `message` where none is named.
    pub(crate) kind: String,
    /// Its content.
    pub(crate) data: String,
}

/// The stream is no event stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {EVENT_LIMIT_BYTES} bytes")]
pub(crate) struct TooLong;

/// Takes bytes and gives events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_return: bool,
    id: Option<String>,
    kind: Option<String>,
    data: Option<String>,
}

impl Parser {
    /// Adds bytes and appends the events that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLong> {
        for byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_line(events)?,
                other => {
                    if self.line.len() >= EVENT_LIMIT_BYTES {
                        return Err(TooLong);
                    }
                    self.line.push(*other);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), TooLong> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            self.end_event(events);
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "event" => self.kind = Some(value.to_owned()),
            "data" => match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) if data.len() + value.len() < EVENT_LIMIT_BYTES => {
                    data.push('\n');
                    data.push_str(value);
                }
                Some(_) => return Err(TooLong),
            },
            // Comments (an empty field name) keep the connection open; unknown fields are to be ignored.
            _ => {}
        }
        Ok(())
    }

    fn end_event(&mut self, events: &mut Vec<Event>) {
        let kind = self.kind.take().unwrap_or_else(|| "message".into());
        if let Some(data) = self.data.take() {
            events.push(Event { id: self.id.clone(), kind, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut events).unwrap();
        }
        events
    }

    fn event(id: Option<&str>, kind: &str, data: &str) -> Event {
        Event { id: id.map(Into::into), kind: kind.into(), data: data.into() }
    }

    #[test]
    fn events_have_ids_kinds_and_lines() {
        let text = b": hello\n\nid: 7\ndata: {\"a\":1}\n\nevent: end\ndata:x\ndata: y\nnews: no\n\ndata: cut";
        let expected = vec![event(Some("7"), "message", "{\"a\":1}"), event(Some("7"), "end", "x\ny")];
        assert_eq!(read(&[text]), expected);
    }

    #[test]
    fn no_cut_and_no_line_end_changes_them() {
        let whole = "id: 1\r\ndata: é\r\n\r\ndata: b\r\n\r\n".as_bytes();
        let expected = vec![event(Some("1"), "message", "é"), event(Some("1"), "message", "b")];
        for cut in 0..whole.len() {
            assert_eq!(read(&[&whole[..cut], &whole[cut..]]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; EVENT_LIMIT_BYTES];
        assert_eq!(parser.push(&piece, &mut Vec::new()), Ok(()));
        assert_eq!(parser.push(b"x", &mut Vec::new()), Err(TooLong));
    }
}
