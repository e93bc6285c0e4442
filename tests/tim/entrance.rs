//! A proxy for a client that always connects to one host with HTTPS: it accepts every CONNECT and presents a certificate for that
//! host, signed by its own authority.

use crate::HOST;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

pub struct Entrance {
    /// For HTTPS_PROXY.
    pub proxy: String,
    /// For REQUESTS_CA_BUNDLE.
    pub authority: PathBuf,
    _runtime: Runtime,
}

impl Entrance {
    /// Leads to a server; the authority's certificate goes into a directory.
    pub fn open(to: SocketAddr, directory: &Path) -> Entrance {
        let (config, pem) = certify();
        let authority = directory.join("authority.pem");
        std::fs::write(&authority, pem).expect("written");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let proxy = format!("http://{}", listener.local_addr().expect("an address"));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, to, acceptor.clone()));
            }
        });
        Entrance {
            proxy,
            authority,
            _runtime: runtime,
        }
    }
}

/// An error is the client's going away, which ends a connection as well as anything.
async fn pass(stream: TcpStream, to: SocketAddr, acceptor: TlsAcceptor) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 && !line.ends_with("\r\n\r\n") {}
    assert!(line.starts_with(&format!("CONNECT {HOST}:443 ")), "{line}");
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let mut inside = acceptor.accept(stream).await?;
    let mut outside = TcpStream::connect(to).await?;
    copy_bidirectional(&mut inside, &mut outside).await?;
    Ok(())
}

fn certify() -> (ServerConfig, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    // Named unlike what it signs, which would else look as if it had signed itself.
    params
        .distinguished_name
        .push(DnType::CommonName, "Authority of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = params.self_signed(&key).expect("signed").pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .expect("they belong together");
    (config, authority)
}
