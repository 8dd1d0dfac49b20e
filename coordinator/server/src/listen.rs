//! Connections: bounded in number, closed when a client neither speaks nor reads, and none of them able to
//! hold up the end of the process.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::app::closed;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;

/// A head of a request has to arrive within this time; a connection may idle as long.
const HEAD: Duration = Duration::from_secs(20);
/// A client that takes nothing of its answer for so long is gone, or wants us to fill our memory.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// Bytes of a head, and of what waits to be written on one connection.
const BUFFER_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
/// What open connections get to end by themselves.
const FAREWELL: Duration = Duration::from_secs(5);
/// After an error of accepting (out of descriptors) there is nothing better than to wait.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process begins to end, and then until the last connection is closed or its time is over.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    connections: u32,
    mut closing: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(connections as usize));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = closed(&mut closing) => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, permit)) => {
                let (router, closing) = (router.clone(), closing.clone());
                open.spawn(async move {
                    connection(stream, router, closing).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let ended = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, ended).await.is_err() {
        tracing::info!(left = open.len(), "connections that did not end are cut");
        open.shutdown().await;
    }
}

/// A connection and the right to have it. Beyond the bound, clients wait in the listener's backlog.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are small and awaited.
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

async fn connection(stream: TcpStream, router: Router, mut closing: watch::Receiver<bool>) {
    let io = TokioIo::new(NoStall { inner: stream, stalled: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients break off all the time.
        tracing::debug!(error = %crate::error::chain(&error), "a connection ended early");
    }
}

/// A stream whose writes fail when the other side takes nothing for too long.
struct NoStall {
    inner: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl NoStall {
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for NoStall {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for NoStall {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
