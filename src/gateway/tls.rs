//! TLS with certificate files, which are reloaded when they change; and a stream with or without TLS.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, rustls};

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadCertificate(String);

/// The certificate in force.
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
    /// The bytes that it was parsed from.
    read: Mutex<(Vec<u8>, Vec<u8>)>,
}

fn file(path: &Path) -> Result<Vec<u8>, BadCertificate> {
    std::fs::read(path).map_err(|error| BadCertificate(format!("reading {} failed: {error}", path.display())))
}

fn server(chain: &[u8], key: &[u8]) -> Result<ServerConfig, BadCertificate> {
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| BadCertificate(format!("the certificate chain is not PEM: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| BadCertificate(format!("the private key is not PEM: {error}")))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| BadCertificate(format!("the certificate cannot be used: {error}")))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Clients keep tickets; a cache of sessions would cost memory for each client.
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(server)
}

impl Certificate {
    /// Loads it for the first time. An error ends the start.
    pub fn open(chain: &Path, key: &Path) -> Result<Certificate, BadCertificate> {
        let read = (file(chain)?, file(key)?);
        Ok(Certificate {
            chain: chain.to_owned(),
            key: key.to_owned(),
            current: RwLock::new(Arc::new(server(&read.0, &read.1)?)),
            read: Mutex::new(read),
        })
    }

    /// Reloads it. Returns whether it changed.
    pub fn reload(&self) -> Result<bool, BadCertificate> {
        let bytes = (file(&self.chain)?, file(&self.key)?);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *read == bytes {
            return Ok(false);
        }
        // The two files change one after the other. Until they match, the previous certificate stays in force.
        let server = server(&bytes.0, &bytes.1)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(server);
        *read = bytes;
        Ok(true)
    }

    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let server = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let stream = TlsAcceptor::from(server).accept(stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// The bytes of a connection.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
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
