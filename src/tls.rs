//! TLS for servers of ours and for requests to them: certificate files that are read again when they change.
//!
//! A server has one [`Certificate`]. Its files may be replaced at any time, one after the other; until they fit together again
//! the previous ones stay in force, and open connections go on with what they began with. When the certificate expires is a
//! metric, and is logged in time. TLS 1.2 and 1.3 only, as rustls has no other.

mod client;
mod reloaded;
mod validity;

pub use client::{Trust, TrustedClient, trusting};
pub use reloaded::BadFiles;

use crate::clock::Clock;
use crate::config::CertificateFiles;
use crate::metrics;
use reloaded::{ReloadResult, Reloaded};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use validity::{Validity, validity};

/// How often files are looked at.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often an expiry that is near, or past, is logged.
const WARN_EVERY_MS: u64 = 6 * 3_600_000;
/// How long a client that speaks no TLS has to read why it is refused.
const LINGER: Duration = Duration::from_secs(1);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificates in a PEM file, at least one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadFiles> {
    let read: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let shown = path.display();
    match read {
        Ok(read) if read.is_empty() => Err(BadFiles(format!(
            "{shown} has no certificate; expected PEM with -----BEGIN CERTIFICATE-----"
        ))),
        Ok(read) => Ok(read),
        Err(error) => Err(BadFiles(format!("the certificates in {shown} are not PEM: {error}"))),
    }
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, BadFiles> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        BadFiles(format!(
            "the private key is not PEM: {}: {error}; expected -----BEGIN PRIVATE KEY----- without a password",
            path.display()
        ))
    })
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, BadFiles> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots
            .add(certificate)
            .map_err(|error| BadFiles(format!("a certificate in {} cannot be a CA: {error}", path.display())))?;
    }
    Ok(roots)
}

/// What connections begin with.
struct Server {
    config: Arc<ServerConfig>,
    /// The validity of the certificate of the chain that expires first. `None` if it cannot be read.
    validity: Option<Validity>,
}

/// `read`: the chain, the key, and the CAs of clients if clients may show a certificate.
fn server(files: &CertificateFiles, clients: Option<&Path>, read: &[Vec<u8>]) -> Result<Server, BadFiles> {
    let chain = certificates(&files.chain, &read[0])?;
    let key = private_key(&files.key, &read[1])?;
    let validity = chain
        .iter()
        .filter_map(|one| validity(one))
        .min_by_key(|one| one.until_s);
    let wrong = |error: &dyn std::fmt::Display| {
        let (chain, key) = (files.chain.display(), files.key.display());
        BadFiles(format!(
            "{chain} and {key} cannot be used together: {error}; the key must be the one that the certificate was made for"
        ))
    };
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(&error))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path, &read[2])?);
            // Callers have none. Who must show one, the routes say.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated();
            let verifier = verifier
                .build()
                .map_err(|error| BadFiles(format!("{} cannot be used: {error}", path.display())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_single_cert(chain, key).map_err(|error| wrong(&error))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each handshake is a full one, so who was let in once is looked at again; and sessions would cost memory for each client.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Server {
        config: Arc::new(server),
        validity,
    })
}

/// The certificate of a listener.
pub struct Certificate {
    /// For metrics and the log.
    listener: &'static str,
    chain: PathBuf,
    server: Reloaded<Server>,
    clock: Arc<dyn Clock>,
    warned_ms: Mutex<Option<u64>>,
}

/// Why a connection has no TLS.
#[derive(Debug)]
pub enum NoHandshake {
    /// The client sent a request without TLS. It was answered with a sentence.
    Plain,
    Failed(io::Error),
}

impl Certificate {
    /// Loads it for the first time. An error ends the start. `clients` is a file with the CAs of certificates that clients may
    /// show.
    pub fn open(
        listener: &'static str,
        files: &CertificateFiles,
        clients: Option<&Path>,
        clock: Arc<dyn Clock>,
    ) -> Result<Certificate, BadFiles> {
        let mut paths = vec![files.chain.clone(), files.key.clone()];
        paths.extend(clients.map(Path::to_owned));
        let (files, clients) = (files.clone(), clients.map(Path::to_owned));
        let chain = files.chain.clone();
        let build = move |read: &[Vec<u8>]| server(&files, clients.as_deref(), read);
        let certificate = Certificate {
            listener,
            chain,
            server: Reloaded::open(paths, build)?,
            clock,
            warned_ms: Mutex::new(None),
        };
        certificate.report();
        Ok(certificate)
    }

    /// Takes files that have changed, and logs what an operator must know.
    pub fn reload_if_changed(&self) {
        let (listener, file) = (self.listener, self.chain.display());
        match self.server.reload_if_changed() {
            ReloadResult::Same => {}
            ReloadResult::Changed => {
                *self.warned() = None;
                let expires = self.server.current().validity.map(Validity::until);
                tracing::info!(listener, %file, expires, "TLS certificate reloaded");
            }
            ReloadResult::Failed(error) => tracing::error!(
                listener,
                "reloading the TLS certificate failed, keeping the previous one: {error}"
            ),
        }
        self.report();
    }

    /// Looks again and again.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            self.reload_if_changed();
        }
    }

    fn warned(&self) -> std::sync::MutexGuard<'_, Option<u64>> {
        self.warned_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the metric, and warns of an expiry, now and then.
    fn report(&self) {
        let Some(validity) = self.server.current().validity else {
            return;
        };
        metrics::certificate_expires(self.listener, validity.until_s);
        let now_s = i64::try_from(self.clock.now_ms() / 1_000).unwrap_or(i64::MAX);
        if !validity.ends_soon(now_s) {
            return;
        }
        let now_ms = self.clock.monotonic_ms();
        let mut warned = self.warned();
        if warned.is_some_and(|warned| now_ms < warned + WARN_EVERY_MS) {
            return;
        }
        *warned = Some(now_ms);
        let (listener, file, expires) = (self.listener, self.chain.display(), validity.until());
        if validity.until_s <= now_s {
            tracing::error!(
                listener, %file, expires,
                "the TLS certificate has expired, so clients refuse it; replace the file, it is read again by itself"
            );
        } else {
            tracing::warn!(
                listener, %file, expires,
                "the TLS certificate expires soon; renew it, the file is read again by itself"
            );
        }
    }

    /// Begins TLS on a connection. The caller bounds the time.
    pub async fn accept(&self, stream: TcpStream) -> Result<Stream, NoHandshake> {
        self.accept_through(stream, |stream| stream).await
    }

    /// The same, with what `wrap` makes of the connection below TLS.
    pub async fn accept_through<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: TcpStream,
        wrap: impl FnOnce(TcpStream) -> S,
    ) -> Result<Stream<S>, NoHandshake> {
        let mut first = [0];
        let count = stream.peek(&mut first).await.map_err(NoHandshake::Failed)?;
        // A handshake begins with 22. Methods of HTTP are capital letters.
        if count == 1 && first[0].is_ascii_uppercase() {
            self.refuse_plain(&mut stream).await;
            return Err(NoHandshake::Plain);
        }
        let config = self.server.current().config.clone();
        match TlsAcceptor::from(config).accept(wrap(stream)).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
            Err(error) => Err(NoHandshake::Failed(error)),
        }
    }

    /// Answers a request without TLS with a sentence.
    async fn refuse_plain(&self, stream: &mut TcpStream) {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let (listener, from) = (self.listener, stream.peer_addr().ok());
            tracing::warn!(
                listener,
                ?from,
                count,
                "a client speaks HTTP without TLS to a port with TLS; give it a URL that begins with https:// or wss://"
            );
        }
        const BODY: &str = r#"{"error":{"code":"tls_required","message":"this port speaks TLS: the URL must begin with https:// (for WebSockets wss://)"}}"#;
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{BODY}",
            BODY.len()
        );
        let answered = async {
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            // Closing while something is unread would reset the connection, and the client would lose the answer.
            let mut scrap = [0; 1_024];
            while stream.read(&mut scrap).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(LINGER, answered).await;
    }
}

/// In the extensions of a request that came over a connection whose client has shown a certificate of a CA that is given.
#[derive(Clone, Copy, Debug)]
pub struct HasCertificate;

/// The bytes of a connection.
pub enum Stream<S = TcpStream> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
}

impl<S> Stream<S> {
    /// Whether the client has shown a certificate. One that is not of the CAs that are given ends the handshake.
    pub fn has_client_certificate(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.get_ref().1.peer_certificates().is_some(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
