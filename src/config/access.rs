//! Settings of TLS: for HTTP, and between nodes.

use super::{Flags, Invalid, Kafka};
use clap::ValueEnum;
use serde::Deserialize;
use std::path::PathBuf;

/// The files of a certificate: its chain and its private key, both PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Whether other nodes must show a certificate.
#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum PeerCertificates {
    /// A request of a node without a certificate is refused, and only nodes with https:// are asked
    #[default]
    Required,
    /// Nodes may also ask and be asked without a certificate: while a cluster changes over to TLS
    Optional,
}

/// How nodes know each other by certificates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerTls {
    /// The certificates of the CAs.
    pub ca: PathBuf,
    pub certificates: PeerCertificates,
}

/// The certificate of HTTP, if it is served with TLS.
pub(super) fn http_tls(
    flags: &Flags,
    file: &Flags,
    kafka: Option<&Kafka>,
) -> Result<Option<CertificateFiles>, Invalid> {
    let chain = flags.http_tls_cert.clone().or_else(|| file.http_tls_cert.clone());
    let key = flags.http_tls_key.clone().or_else(|| file.http_tls_key.clone());
    let tls = match (chain, key) {
        (Some(chain), Some(key)) => Some(CertificateFiles { chain, key }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(Invalid::new(
                "http_tls_cert",
                "requires --http-tls-key, the private key",
            ));
        }
        (None, Some(_)) => {
            return Err(Invalid::new(
                "http_tls_key",
                "requires --http-tls-cert, the certificate chain",
            ));
        }
    };
    if tls.is_some() && flags.demo.or(file.demo).is_some() {
        return Err(Invalid::new(
            "demo",
            "cannot be combined with --http-tls-cert: the simulated users speak no TLS",
        ));
    }
    let Some(kafka) = kafka else { return Ok(tls) };
    let required = kafka
        .peer_tls
        .as_ref()
        .is_some_and(|peers| peers.certificates == PeerCertificates::Required);
    if required && tls.is_none() {
        return Err(Invalid::new(
            "peer_ca",
            "requires --http-tls-cert, the certificate that this node serves with and shows to other nodes; while the nodes \
             change over one after the other, set --peer-certificates optional",
        ));
    }
    let is_https = |url: &String| url.starts_with("https://");
    match &kafka.advertise {
        Some(url) if required && !is_https(url) => Err(Invalid::new(
            "advertise",
            format!("must begin with https://, since --peer-ca has other nodes ask only over TLS, not {url}"),
        )),
        Some(url) if tls.is_some() && !is_https(url) => Err(Invalid::new(
            "advertise",
            format!("must begin with https://, since HTTP is served with TLS (--http-tls-cert), not {url}"),
        )),
        Some(_) | None => Ok(tls),
    }
}
