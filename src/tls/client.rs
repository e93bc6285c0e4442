//! Whose certificates a client of ours accepts, and which one it shows.

use super::reloaded::{BadFiles, ReloadResult, Reloaded, read};
use super::{CHECK_INTERVAL, certificates, private_key};
use crate::config::CertificateFiles;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Adds the CAs of a file to a client: it then accepts no others. Without a file it accepts those of the system.
pub fn trusting(builder: reqwest::ClientBuilder, ca: Option<&Path>) -> Result<reqwest::ClientBuilder, BadFiles> {
    match ca {
        None => Ok(builder),
        Some(path) => only(builder, path, &read(path)?),
    }
}

fn only(builder: reqwest::ClientBuilder, path: &Path, pem: &[u8]) -> Result<reqwest::ClientBuilder, BadFiles> {
    let roots: Result<Vec<_>, _> = certificates(path, pem)?
        .iter()
        .map(|one| reqwest::Certificate::from_der(one))
        .collect();
    let roots =
        roots.map_err(|error| BadFiles(format!("a certificate in {} cannot be a CA: {error}", path.display())))?;
    Ok(builder.tls_certs_only(roots))
}

/// The files of a client that is built again when they change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trust {
    /// The CAs whose certificates it accepts.
    pub ca: PathBuf,
    /// The certificate that it shows.
    pub shown: Option<CertificateFiles>,
}

/// A client whose CAs and certificate are read again when their files change.
pub struct TrustedClient {
    files: Trust,
    client: Reloaded<reqwest::Client>,
}

impl TrustedClient {
    /// `settings` gives the rest of the client's settings.
    pub fn open(
        files: Trust,
        settings: impl Fn() -> reqwest::ClientBuilder + Send + Sync + 'static,
    ) -> Result<TrustedClient, BadFiles> {
        let mut paths = vec![files.ca.clone()];
        if let Some(shown) = &files.shown {
            paths.extend([shown.chain.clone(), shown.key.clone()]);
        }
        let of = files.clone();
        let build = move |read: &[Vec<u8>]| {
            let mut builder = only(settings(), &of.ca, &read[0])?;
            if let Some(shown) = &of.shown {
                // What reqwest says about PEM is less than what these say.
                certificates(&shown.chain, &read[1])?;
                private_key(&shown.key, &read[2])?;
                let both = [&read[2][..], b"\n", &read[1]].concat();
                let identity = reqwest::Identity::from_pem(&both);
                let identity = identity.map_err(|error| {
                    let (chain, key) = (shown.chain.display(), shown.key.display());
                    BadFiles(format!("{chain} and {key} cannot be shown to other nodes: {error}"))
                })?;
                builder = builder.identity(identity);
            }
            let built = builder.build();
            built.map_err(|error| BadFiles(format!("{} cannot be used for a client: {error}", of.ca.display())))
        };
        Ok(TrustedClient {
            client: Reloaded::open(paths, build)?,
            files,
        })
    }

    pub fn current(&self) -> reqwest::Client {
        reqwest::Client::clone(&self.client.current())
    }

    /// Reads the files again whenever they have changed.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let ca = self.files.ca.display();
            match self.client.reload_if_changed() {
                ReloadResult::Same => {}
                ReloadResult::Changed => tracing::info!(%ca, "certificates for requests to other nodes reloaded"),
                ReloadResult::Failed(error) => tracing::error!(
                    "reloading the certificates for requests to other nodes failed, keeping the previous ones: {error}"
                ),
            }
        }
    }
}
