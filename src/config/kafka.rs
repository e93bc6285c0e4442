//! Settings of Kafka, and of nodes among themselves.

use super::access::{PeerCertificates, PeerTls};
use super::{Credential, DEFAULT_GROUP, Flags, GROUP_BYTES_MAX, Invalid, Kafka, Secret, SecretUrl, tokens, within};
use crate::presence::{Offset, Partition};
use anyhow::bail;
use std::path::PathBuf;

/// The settings of Kafka, if there is one; without it none of them means anything.
pub(super) fn kafka(flags: &Flags, file: &Flags) -> anyhow::Result<Option<Kafka>> {
    fn first<T: Clone>(flag: &Option<T>, file: &Option<T>) -> Option<T> {
        flag.clone().or_else(|| file.clone())
    }
    let mut set = file.kafka_set.clone();
    set.extend(flags.kafka_set.iter().cloned());
    let advertise = first(&flags.advertise, &file.advertise);
    let peer_token_file = first(&flags.peer_token_file, &file.peer_token_file);
    let peer_ca = first(&flags.peer_ca, &file.peer_ca);
    let peer_certificates = flags.peer_certificates.or(file.peer_certificates);
    let standbys = flags.standbys.or(file.standbys);
    let Some(bootstrap) = first(&flags.kafka, &file.kafka) else {
        let given: [(&'static str, bool); 11] = [
            ("topic_prefix", first(&flags.topic_prefix, &file.topic_prefix).is_some()),
            ("group", first(&flags.group, &file.group).is_some()),
            ("advertise", advertise.is_some()),
            (
                "cloudevents_source",
                first(&flags.cloudevents_source, &file.cloudevents_source).is_some(),
            ),
            ("peer_token_file", peer_token_file.is_some()),
            ("peer_ca", peer_ca.is_some()),
            ("peer_certificates", peer_certificates.is_some()),
            ("kafka_set", !set.is_empty()),
            ("adopt_tail", flags.adopt_tail || file.adopt_tail),
            ("standbys", standbys.is_some()),
            (
                "kafka_properties",
                first(&flags.kafka_properties, &file.kafka_properties).is_some(),
            ),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
            bail!(Invalid::new(name, "requires --kafka, which names the brokers"));
        }
        return Ok(None);
    };
    if flags.partitions.or(file.partitions).is_some() {
        bail!(Invalid::new(
            "partitions",
            "cannot be combined with --kafka; set it with `rollcall topics create --partitions N`"
        ));
    }
    for (name, given) in [
        (
            "retention_hours",
            flags.retention_hours.or(file.retention_hours).is_some(),
        ),
        ("retention_mib", flags.retention_mib.or(file.retention_mib).is_some()),
    ] {
        if given {
            bail!(Invalid::new(
                name,
                "cannot be combined with --kafka: it is for the embedded log; on Kafka set it with `rollcall topics \
                 create --retention-hours HOURS` or in the topics' own settings"
            ));
        }
    }
    let group = first(&flags.group, &file.group).unwrap_or_else(|| DEFAULT_GROUP.to_owned());
    if group.is_empty() || group.len() > GROUP_BYTES_MAX {
        let problem = format!("must have 1 to {GROUP_BYTES_MAX} bytes, not {}", group.len());
        bail!(Invalid::new("group", problem));
    }
    let url = |url: SecretUrl| -> Result<String, Invalid> {
        let given = url.reveal();
        let is_bare = given.path() == "/" && given.query().is_none() && given.fragment().is_none();
        if url.has_credentials() || !is_bare {
            let problem = format!(
                "must be http://HOST:PORT or https://HOST:PORT and nothing more, since other nodes refuse anything else: {url}"
            );
            return Err(Invalid::new("advertise", problem));
        }
        let is_unspecified = match given.host() {
            Some(url::Host::Ipv4(address)) => address.is_unspecified(),
            Some(url::Host::Ipv6(address)) => address.is_unspecified(),
            Some(url::Host::Domain(_)) | None => false,
        };
        if is_unspecified {
            let problem = format!("must be an address at which other nodes can reach this one, not {url}");
            return Err(Invalid::new("advertise", problem));
        }
        Ok(given.as_str().trim_end_matches('/').to_owned())
    };
    let peer_token = |path: PathBuf| -> anyhow::Result<Credential> {
        let token = Credential::read(&path, "peer token")?;
        if token.reveal().len() < tokens::TOKEN_BYTES_MIN {
            let problem = format!(
                "{}: a peer token must have at least {} characters",
                path.display(),
                tokens::TOKEN_BYTES_MIN
            );
            bail!(Invalid::new("peer_token_file", problem));
        }
        Ok(token)
    };
    let accepted = |text: String| {
        let pair = text
            .split_once(':')
            .and_then(|(partition, offset)| Some((Partition(partition.parse().ok()?), Offset(offset.parse().ok()?))));
        pair.ok_or_else(|| {
            let problem = format!("must be a partition and an offset, such as 3:12345, not {text:?}");
            Invalid::new("accept_time", problem)
        })
    };
    Ok(Some(Kafka {
        bootstrap,
        topic_prefix: first(&flags.topic_prefix, &file.topic_prefix),
        group,
        advertise: advertise.map(url).transpose()?,
        peer_token: peer_token_file.map(peer_token).transpose()?,
        peer_tls: peer_tls(peer_ca, peer_certificates)?,
        set: Secret(set),
        properties: first(&flags.kafka_properties, &file.kafka_properties),
        accepted: first(&flags.accept_time, &file.accept_time).map(accepted).transpose()?,
        adopt_tail: flags.adopt_tail || file.adopt_tail,
        standbys: within("standbys", standbys, 0, 0, 3)? as usize,
    }))
}

fn peer_tls(ca: Option<PathBuf>, certificates: Option<PeerCertificates>) -> Result<Option<PeerTls>, Invalid> {
    match (ca, certificates) {
        (Some(ca), certificates) => Ok(Some(PeerTls {
            ca,
            certificates: certificates.unwrap_or_default(),
        })),
        (None, Some(_)) => Err(Invalid::new(
            "peer_certificates",
            "requires --peer-ca, the CA of the nodes",
        )),
        (None, None) => Ok(None),
    }
}
