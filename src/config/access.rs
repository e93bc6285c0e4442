//! Settings of who is let in: certificates of HTTP and of nodes, and an issuer of tokens.

use super::{Flags, Invalid, Kafka};
use clap::ValueEnum;
use serde::Deserialize;
use std::path::PathBuf;
use url::{Host, Url};

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

/// An issuer whose tokens are accepted beside those of the token file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Oidc {
    /// Exactly as it is in tokens.
    pub issuer: String,
    pub audience: String,
    pub scope_claim: String,
    pub scope_prefix: String,
    pub name_claim: String,
    /// The CAs of the issuer's server.
    pub ca: Option<PathBuf>,
}

const DEFAULT_PREFIX: &str = "rollcall:";

/// The issuer, if there is one.
pub(super) fn oidc(flags: &Flags, file: &Flags) -> Result<Option<Oidc>, Invalid> {
    fn first<T: Clone>(flag: &Option<T>, file: &Option<T>) -> Option<T> {
        flag.clone().or_else(|| file.clone())
    }
    let audience = first(&flags.oidc_audience, &file.oidc_audience);
    let scope_claim = first(&flags.oidc_scope_claim, &file.oidc_scope_claim);
    let scope_prefix = first(&flags.oidc_scope_prefix, &file.oidc_scope_prefix);
    let name_claim = first(&flags.oidc_name_claim, &file.oidc_name_claim);
    let ca = first(&flags.oidc_ca_file, &file.oidc_ca_file);
    let Some(issuer) = first(&flags.oidc_issuer, &file.oidc_issuer) else {
        for (name, given) in [
            ("oidc_audience", audience.is_some()),
            ("oidc_scope_claim", scope_claim.is_some()),
            ("oidc_scope_prefix", scope_prefix.is_some()),
            ("oidc_name_claim", name_claim.is_some()),
            ("oidc_ca_file", ca.is_some()),
        ] {
            if given {
                return Err(Invalid::new(name, "requires --oidc-issuer, whose tokens are accepted"));
            }
        }
        return Ok(None);
    };
    check_issuer(&issuer)?;
    let has_tokens = flags.token_file.is_some() || file.token_file.is_some();
    if !has_tokens && flags.demo.or(file.demo).is_some() {
        return Err(Invalid::new(
            "demo",
            "cannot be combined with --oidc-issuer alone, whose tokens the simulated users do not have; give a --token-file with \
             a token that may publish, or leave --oidc-issuer out",
        ));
    }
    let Some(audience) = audience.filter(|audience| !audience.is_empty()) else {
        return Err(Invalid::new(
            "oidc_issuer",
            "requires --oidc-audience: without it a token that the issuer made for another service would be accepted here",
        ));
    };
    Ok(Some(Oidc {
        issuer,
        audience,
        scope_claim: scope_claim.unwrap_or_else(|| "scope".to_owned()),
        scope_prefix: scope_prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
        name_claim: name_claim.unwrap_or_else(|| "sub".to_owned()),
        ca,
    }))
}

/// Whether a URL names this machine, so that nobody is on the way.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn check_issuer(issuer: &str) -> Result<(), Invalid> {
    let wrong = |why: &str| {
        let problem = format!("must be the issuer's URL, such as https://login.example.com/realms/ours: {why}");
        Err(Invalid::new("oidc_issuer", problem))
    };
    let Ok(url) = Url::parse(issuer) else {
        return wrong("it is not a URL");
    };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return wrong("it has a user, a password, a query or a fragment");
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(&url) => Ok(()),
        _ => wrong("it does not begin with https://, so anybody on the way could give keys"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_needs_a_token_where_an_issuer_makes_all_the_others() {
        let flags = Flags {
            oidc_issuer: Some("https://login.example.com".to_owned()),
            oidc_audience: Some("presence".to_owned()),
            demo: Some(10),
            ..Flags::default()
        };
        let refused = oidc(&flags, &Flags::default()).expect_err("it has none").to_string();
        assert!(
            refused.contains("demo") && refused.contains("--token-file"),
            "{refused}"
        );
        let file = Flags {
            token_file: Some("tokens".into()),
            ..Flags::default()
        };
        assert!(oidc(&flags, &file).is_ok_and(|oidc| oidc.is_some()));
    }
}
