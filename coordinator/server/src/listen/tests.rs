//! Clients that neither speak nor read. The clock stands still until nobody has anything left to do, and then goes
//! on to the next limit: what is tested is that the limits are there, not how long they are.

use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;

const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

/// A listener over a router of the test's own, and what ends it.
async fn listening(router: Router, connections: u32) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (closing, is_closing) = watch::channel(false);
    tokio::spawn(serve(listener, router, connections, is_closing));
    (address, closing)
}

async fn client(address: std::net::SocketAddr, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream
}

/// What the server still says before it closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    tokio::time::timeout(FOREVER, read).await.expect("the server closes the connection").unwrap();
    String::from_utf8(rest).unwrap()
}

fn greeting() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_cut_off() {
    let (address, _closing) = listening(greeting(), 4).await;
    for words in ["", "G", "GET / HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let said = rest(client(address, words).await).await;
        assert!(!said.contains("hello"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_idles_is_closed_after_its_answer() {
    let (address, _closing) = listening(greeting(), 4).await;
    let said = rest(client(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await).await;
    assert!(said.ends_with("hello"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_bound_wait_for_one_that_is_cut_off() {
    let (address, _closing) = listening(greeting(), 1).await;
    let _holds_the_only_place = client(address, "GET").await;
    let said = rest(client(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await).await;
    assert!(said.ends_with("hello"), "{said}");
}

/// Says when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_cut_off() {
    let (dropped, mut ended) = mpsc::unbounded_channel();
    let endless = move || async move {
        let held = Dropped(dropped);
        let piece = Bytes::from(vec![0; 1 << 20]);
        Body::from_stream(stream::iter(std::iter::repeat_with(move || {
            let _ = &held;
            Ok::<_, io::Error>(piece.clone())
        })))
    };
    let (address, _closing) = listening(Router::new().route("/", get(endless)), 4).await;
    let _reads_nothing = client(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    tokio::time::timeout(FOREVER, ended.recv()).await.expect("the answer is dropped").unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_no_body_that_does_not_come() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (closing, is_closing) = watch::channel(false);
    let begun = Arc::new(tokio::sync::Notify::new());
    let told = begun.clone();
    let slow = move |body: Body| async move {
        told.notify_one();
        http_body_util::BodyExt::collect(body)
            .await
            .map(|_| ())
            .map_err(|_| axum::http::StatusCode::BAD_REQUEST)
    };
    let router = Router::new().route("/", post(slow));
    let serving = tokio::spawn(serve(listener, router, 4, is_closing));
    let _half = client(address, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf").await;
    begun.notified().await;
    closing.send_replace(true);
    tokio::time::timeout(FOREVER, serving).await.expect("serving ends").unwrap();
}
