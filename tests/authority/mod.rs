//! A certificate authority of a test, and what it certifies.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::path::{Path, PathBuf};

pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub pem: String,
}

/// Where a certificate is: its chain and its key.
pub struct Certified {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// For nodes: of servers and of clients.
pub const BOTH: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("made");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Writes its certificate into a file.
    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, &self.pem).expect("written");
        path.to_owned()
    }

    /// Certifies this machine by its name and its address, in `NAME.pem` and `NAME.key`.
    pub fn certify(&self, directory: &Path, name: &str, usages: &[ExtendedKeyUsagePurpose]) -> Certified {
        let certified = Certified {
            chain: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        let key = KeyPair::generate().expect("made");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = usages.to_vec();
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(&certified.chain, certificate.pem()).expect("written");
        std::fs::write(&certified.key, key.serialize_pem()).expect("written");
        certified
    }
}
