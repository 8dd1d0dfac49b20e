//! A canned coordinator: it answers what is written here, hangs up where a test wants it, and checks the token.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::canned;

pub(crate) const TOKEN: &str = "adm-canned-token";

/// Answers until the process ends.
pub(crate) struct Coordinator {
    address: SocketAddr,
}

/// One request, as far as answers depend on it.
pub(crate) struct Request {
    /// `GET /api/v1/status?x=y`
    pub(crate) line: String,
    /// The header of that name.
    pub(crate) last_event_id: Option<String>,
    authorised: bool,
}

/// One answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: Vec<u8>,
    /// Says that more follows than is sent, as a coordinator that is killed does.
    pub(crate) cut: bool,
}

impl Coordinator {
    /// Starts to answer, and leaves endpoint and token where a coordinator of that data directory would.
    pub(crate) fn start(data_dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let folder = data_dir.join("coordinator");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("endpoint"), format!("http://{address}\n")).expect("a file");
        let process = buildyard_coordinator::process::ProcessId::of(std::process::id()).expect("it lives");
        let process = serde_json::to_string(&process).expect("it is JSON");
        std::fs::write(folder.join("process.json"), process).expect("a file");
        std::fs::write(folder.join("admin.token"), format!("{TOKEN}\n")).expect("a file");
        let streams = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let streams = streams.clone();
                // A client that hangs up early is no failure of the coordinator.
                std::thread::spawn(move || drop(serve(stream, &streams)));
            }
        });
        Self { address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(mut stream: TcpStream, streams: &AtomicUsize) -> std::io::Result<()> {
    let request = read(&stream)?;
    let answer = if request.authorised {
        let opened = usize::from(request.line.contains("run-46/events"));
        let earlier = streams.fetch_add(opened, Ordering::SeqCst);
        canned::answer(&request, earlier)
    } else {
        canned::problem(401, "unauthorized", "the token is not known here, or too old", None)
    };
    let length = answer.body.len() + if answer.cut { 1000 } else { 0 };
    write!(
        stream,
        "HTTP/1.1 {} X\r\ncontent-type: {}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n",
        answer.status, answer.kind
    )?;
    stream.write_all(&answer.body)
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().take(2).collect();
    let mut request = Request { line: words.join(" "), last_event_id: None, authorised: false };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ").unwrap_or((header, ""));
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorised = value == format!("Bearer {TOKEN}"),
            "last-event-id" => request.last_event_id = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    std::io::Read::read_exact(&mut reader, &mut vec![0; length])?;
    Ok(request)
}
