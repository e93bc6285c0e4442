//! One connection's bytes, with the time-outs that hyper does not have.
//!
//! hyper's own time-out for a request's head runs while a connection is merely idle too, and nothing of it watches a
//! client that does not read. Here a head has its time from its first byte on, an idle connection has more, and what is
//! written must make progress. The few answers that hyper gives by itself, before there is a request, get a body.

use super::api_error::ApiError;
use axum::http::StatusCode;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// The largest head of a request, in bytes: its URL and its header fields. The same number of bytes of a response is
/// buffered.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// How long a connection may take for what.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTimeouts {
    /// From the first byte of a request's head to its end, and from the opening of a connection to its first byte.
    pub head: Duration,
    /// Between a response and the next request.
    pub idle: Duration,
    /// Without any progress while something is to be written.
    pub write: Duration,
}

impl Default for ConnectionTimeouts {
    fn default() -> ConnectionTimeouts {
        ConnectionTimeouts {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(30),
        }
    }
}

/// The requests of a connection.
#[derive(Debug, Default)]
pub struct Requests {
    begun: AtomicUsize,
    ended: AtomicUsize,
    unread: AtomicBool,
}

impl Requests {
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    pub fn end(&self) {
        self.ended.fetch_add(1, Ordering::AcqRel);
    }

    /// The body of one is not read to its end: the client may still be sending it.
    pub fn leave_unread(&self) {
        self.unread.store(true, Ordering::Release);
    }

    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire)
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether one is being answered.
    pub fn any(&self) -> bool {
        self.begun() != self.ended.load(Ordering::Acquire)
    }
}

/// For so long what a client still sends is read and dropped, after an answer that did not wait for it.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing came yet, or a head is on its way.
    Head,
    /// A request is being answered: its body has time-outs of its own.
    Request,
    Idle,
}

/// See the module.
pub struct Watched<S> {
    stream: S,
    requests: Arc<Requests>,
    patience: ConnectionTimeouts,
    phase: Phase,
    /// When the phase has lasted too long.
    reading: Pin<Box<Sleep>>,
    /// How many requests had begun when it was looked at last.
    begun: usize,
    /// Until when a client is given time to read an answer to what it is still sending.
    lingering: Option<Pin<Box<Sleep>>>,
    /// The first line of the head has come.
    has_line: bool,
    /// An answer in place of hyper's, as far as it is not written yet.
    instead: Vec<u8>,
}

impl<S> Watched<S> {
    pub fn new(stream: S, requests: Arc<Requests>, patience: ConnectionTimeouts) -> Watched<S> {
        Watched {
            stream,
            requests,
            patience,
            phase: Phase::Head,
            reading: Box::pin(tokio::time::sleep(patience.head)),
            begun: 0,
            lingering: None,
            has_line: false,
            instead: Vec::new(),
        }
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut me.stream).poll_read(cx, buf);
        let begun = me.requests.begun();
        if me.requests.any() {
            (me.phase, me.begun, me.has_line) = (Phase::Request, begun, false);
            return polled;
        }
        if begun != me.begun {
            // One was answered without anything being read meanwhile.
            (me.phase, me.begun, me.has_line) = (Phase::Request, begun, false);
        }
        if polled.is_ready() {
            let came = &buf.filled()[before..];
            if me.phase != Phase::Head && !came.is_empty() {
                me.phase = Phase::Head;
                me.has_line = false;
                me.reading = Box::pin(tokio::time::sleep(me.patience.head));
            }
            me.has_line |= came.contains(&b'\n');
            return polled;
        }
        if me.phase == Phase::Request {
            me.phase = Phase::Idle;
            me.reading = Box::pin(tokio::time::sleep(me.patience.idle));
        }
        match me.reading.as_mut().poll(cx) {
            Poll::Ready(()) if me.phase == Phase::Idle => Poll::Ready(Err(timed_out("no request came"))),
            Poll::Ready(()) => Poll::Ready(Err(timed_out("the head of the request did not arrive in time"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn write_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let bytes = std::mem::take(&mut self.instead);
            let polled = Pin::new(&mut self.stream).poll_write(cx, &bytes);
            self.instead = bytes;
            match polled {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => drop(self.instead.drain(..count)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if let Some(answer) = instead_of(bytes, me.has_line) {
            me.instead = answer;
        }
        if me.instead.is_empty() {
            return Pin::new(&mut me.stream).poll_write(cx, bytes);
        }
        match me.write_instead(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is left goes out with the flush that follows.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        std::task::ready!(me.write_instead(cx))?;
        Pin::new(&mut me.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        std::task::ready!(me.write_instead(cx))?;
        if me.lingering.is_none() {
            std::task::ready!(Pin::new(&mut me.stream).poll_shutdown(cx))?;
            if !me.requests.is_unread() {
                return Poll::Ready(Ok(()));
            }
        }
        // Closing while there is something unread resets the connection, and the client would lose the answer.
        let until = me.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut scrap = [0; 4_096];
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scrap);
            match Pin::new(&mut me.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// A socket on which what is written must make progress. It is below TLS: TLS takes 64 KiB from a client that does not read
/// before it says that it waits, and what little is written then and now would look like progress for hours.
pub struct WriteLimited<S> {
    socket: S,
    limit: Duration,
    /// When nothing was taken for too long; none while nothing waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteLimited<S> {
    pub fn new(socket: S, limit: Duration) -> WriteLimited<S> {
        WriteLimited {
            socket,
            limit,
            waiting: None,
        }
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(timed_out("the client does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteLimited<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteLimited<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = Pin::new(&mut me.socket).poll_write(cx, bytes);
        me.limited(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let polled = Pin::new(&mut me.socket).poll_write_vectored(cx, parts);
        me.limited(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// What is answered in place of an answer that hyper gave by itself, which has no body: every other one here has.
fn instead_of(bytes: &[u8], has_line: bool) -> Option<Vec<u8>> {
    let head = bytes
        .strip_prefix(b"HTTP/1.1 4")
        .filter(|_| bytes.ends_with(b"\r\n\r\n"))?;
    let head = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
    if head.contains("content-type:") || !head.contains("content-length: 0\r\n") {
        return None;
    }
    let bytes_max = HEAD_BYTES_MAX;
    let api_error = match head.get(..2)? {
        "14" | "31" if !has_line => ApiError::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            format!(
                "the address is longer than {bytes_max} bytes; send a long filter as the body of POST /v1/changes/query \
                 or POST /v1/users/query"
            ),
        ),
        "14" => ApiError::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            "the address is too long; send a long filter as the body of POST /v1/changes/query or POST /v1/users/query",
        ),
        "31" => ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "head_too_large",
            format!("the head of a request may have at most {bytes_max} bytes and 100 fields"),
        ),
        _ => ApiError::bad_request("bad_request", "this is not a request of HTTP/1.1"),
    };
    Some(api_error.raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_read_is_given_up_and_who_reads_slowly_is_not() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const LIMIT: Duration = Duration::from_millis(200);
        let (ours, theirs) = tokio::io::duplex(64);
        let mut limited = WriteLimited::new(ours, LIMIT);
        let error = limited.write_all(&[7; 1_000]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut limited = WriteLimited::new(ours, LIMIT);
        let reader = async {
            let mut read = Vec::new();
            while read.len() < 640 {
                tokio::time::sleep(Duration::from_millis(30)).await;
                let mut some = [0; 64];
                let count = theirs.read(&mut some).await.expect("open");
                read.extend_from_slice(&some[..count]);
            }
        };
        let (written, ()) = tokio::join!(limited.write_all(&[7; 640]), reader);
        written.expect("it went on");
    }

    /// A connection with TLS whose client has performed its handshake and reads nothing more.
    async fn unread() -> (impl AsyncWrite + Unpin, impl AsyncRead + Unpin) {
        use tokio_rustls::rustls::crypto::aws_lc_rs;
        use tokio_rustls::rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
        use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let server = server
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("they fit");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (ours, theirs) = tokio::io::duplex(4_096);
        let name = ServerName::try_from("localhost").expect("a name");
        let (ours, theirs) = tokio::join!(
            tokio_rustls::TlsAcceptor::from(Arc::new(server))
                .accept(WriteLimited::new(ours, Duration::from_millis(200))),
            tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, theirs),
        );
        (ours.expect("a handshake"), theirs.expect("a handshake"))
    }

    #[tokio::test]
    async fn who_does_not_read_is_given_up_while_tls_still_takes_bytes() {
        use tokio::io::AsyncWriteExt as _;
        const PATIENCE: Duration = Duration::from_secs(60);
        // More than the way to the client holds, and less than TLS takes.
        let (mut ours, _theirs) = unread().await;
        ours.write_all(&[7; 10_000]).await.expect("TLS has them");
        let flushed = tokio::time::timeout(PATIENCE, ours.flush()).await.expect("an end");
        assert_eq!(flushed.expect_err("nobody reads").kind(), io::ErrorKind::TimedOut);
        let (mut ours, _theirs) = unread().await;
        ours.write_all(&[7; 10_000]).await.expect("TLS has them");
        let closed = tokio::time::timeout(PATIENCE, ours.shutdown()).await.expect("an end");
        assert_eq!(closed.expect_err("nobody reads").kind(), io::ErrorKind::TimedOut);
        // Little by little, as a subscription in which nothing happens: TLS has room for hours of it.
        let (mut ours, _theirs) = unread().await;
        ours.write_all(&[7; 10_000]).await.expect("TLS has them");
        let mut given_up = None;
        for _ in 0..500 {
            if let Err(error) = ours.write_all(b": \n\n").await {
                given_up = Some(error.kind());
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(given_up, Some(io::ErrorKind::TimedOut));
    }

    #[test]
    fn only_answers_without_a_body_are_replaced() {
        let theirs = b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let text = |has_line| String::from_utf8(instead_of(theirs, has_line).expect("replaced")).expect("text");
        assert!(text(false).starts_with("HTTP/1.1 414 URI Too Long\r\n"));
        assert!(text(true).contains("{\"error\":{\"code\":\"uri_too_long\""));
        for ours in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
            b"data",
        ] {
            assert_eq!(instead_of(ours, true), None);
        }
    }
}
