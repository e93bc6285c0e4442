//! Settings of the WebSocket edge, the same for `rollcall gateway` and for `rollcall serve --gateway`.

use super::units::{Bytes, Mebibytes, Milliseconds, Seconds};
use super::{CertificateFiles, Invalid, address, within};
use anyhow::bail;
use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Every flag may also be given as the environment variable named beside it, or in the table `[edge]` of the file.
#[derive(Args, Deserialize, Clone, Default, Debug)]
#[command(next_help_heading = "WebSocket edge")]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// Name of this gateway, 1 to 64 bytes, unique among all that publish to the same log [default: edge, and
    /// serve within `rollcall serve`]
    #[arg(long, value_name = "NAME", env = "ROLLCALL_GATEWAY_NAME")]
    pub gateway_name: Option<String>,
    /// Takes the user from `?user=` and requires no token. Only on a loopback address, to try it out
    #[arg(long, env = "ROLLCALL_GATEWAY_INSECURE", value_parser = BoolishValueParser::new())]
    pub gateway_insecure: bool,
    /// The key that tokens are checked with: a public key (PEM, RSA or P-256) or a secret of at least 32 bytes. Read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLLCALL_JWT_KEY")]
    pub jwt_key: Option<PathBuf>,
    /// A JSON Web Key Set, a file or an address (https://… or http://…). Read again when it changes
    #[arg(long, value_name = "FILE|URL", env = "ROLLCALL_JWKS", hide_env_values = true)]
    pub jwks: Option<String>,
    /// How often keys and certificates are read again, in seconds, 1 to 86400 [default: 60]
    #[arg(long, value_name = "SECONDS", env = "ROLLCALL_RELOAD_SECONDS")]
    pub reload_seconds: Option<Seconds>,
    /// The claim that names the user [default: sub]
    #[arg(long, value_name = "CLAIM", env = "ROLLCALL_JWT_USER_CLAIM")]
    pub jwt_user_claim: Option<String>,
    /// A claim that must be the platform of the connection, if the token has it
    #[arg(long, value_name = "CLAIM", env = "ROLLCALL_JWT_PLATFORM_CLAIM")]
    pub jwt_platform_claim: Option<String>,
    /// A claim that must be the device of the connection, if the token has it
    #[arg(long, value_name = "CLAIM", env = "ROLLCALL_JWT_DEVICE_CLAIM")]
    pub jwt_device_claim: Option<String>,
    /// The issuer that tokens must name (`iss`)
    #[arg(long, value_name = "TEXT", env = "ROLLCALL_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
    /// The audience that tokens must name (`aud`)
    #[arg(long, value_name = "TEXT", env = "ROLLCALL_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// Certificate chain (PEM) for TLS, read again when it changes; needs --tls-key
    #[arg(long, value_name = "FILE", env = "ROLLCALL_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) for TLS, read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLLCALL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// The client's address is the last of `X-Forwarded-For`: only behind a proxy that sets it
    #[arg(long, env = "ROLLCALL_TRUST_FORWARDED", value_parser = BoolishValueParser::new())]
    pub trust_forwarded: bool,
    /// Maximum number of connections, 1 to 10000000 [default: 100000]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_CONNECTIONS_MAX")]
    pub connections_max: Option<u64>,
    /// Maximum number of connections per user, 1 to 10000 [default: 64]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_USER_CONNECTIONS_MAX")]
    pub user_connections_max: Option<u64>,
    /// Maximum number of connections per client address, 1 to 10000000 [default: 4096]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_ADDRESS_CONNECTIONS_MAX")]
    pub address_connections_max: Option<u64>,
    /// Maximum size of a client's message in bytes, 1024 to 1048576 [default: 65536]
    #[arg(long, value_name = "BYTES", env = "ROLLCALL_MESSAGE_BYTES_MAX")]
    pub message_bytes_max: Option<Bytes>,
    /// Messages per second per connection, 1 to 10000; bursts may have four times as many [default: 25]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_MESSAGE_RATE_MAX")]
    pub message_rate_max: Option<u64>,
    /// Time limit from the first byte to a valid token, in ms, 100 to 60000 [default: 10000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_HANDSHAKE_MS")]
    pub handshake_ms: Option<Milliseconds>,
    /// Connections accepted per second at first, 1 to 1000000; the rate doubles each second [default: 1000]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_ACCEPT_RATE")]
    pub accept_rate: Option<u64>,
    /// A client that does not read what is sent to it for this long is closed, in ms, 100 to 600000 [default: 10000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_WRITE_MS")]
    pub write_ms: Option<Milliseconds>,
    /// A link that is silent for this long gets a WebSocket ping, in ms, 100 to 600000; half of the platform's
    /// time-out, if that is shorter [default: 25000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_PING_MS")]
    pub ping_ms: Option<Milliseconds>,
    /// A silent socket is closed this long after its time-out, in ms, 0 to 3600000 [default: 30000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_SILENCE_MS")]
    pub silence_ms: Option<Milliseconds>,
    /// Duration of the lease, in ms, 1000 to 86400000 [default: 30000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_LEASE_MS")]
    pub lease_ms: Option<Milliseconds>,
    /// Time between two renewals of the lease, in ms, 100 up to half of --lease-ms [default: a sixth of --lease-ms]
    #[arg(long, value_name = "MS", env = "ROLLCALL_LEASE_EVERY_MS")]
    pub lease_every_ms: Option<Milliseconds>,
    /// Longest time that heartbeats are gathered before they are published, in ms, 10 to 60000 [default: 10000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_BEATS_EVERY_MS")]
    pub beats_every_ms: Option<Milliseconds>,
    /// Number of heartbeats that are published at once without waiting, 1 to 100000 [default: 10000]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_BEATS_MAX")]
    pub beats_max: Option<u64>,
    /// Time over which clients are asked to reconnect elsewhere when the gateway stops, in ms, 0 to 600000 [default: 10000]
    #[arg(long, value_name = "MS", env = "ROLLCALL_DRAIN_MS")]
    pub drain_ms: Option<Milliseconds>,
    /// Disk space for disconnects and logouts that wait for the log, in MiB, 1 to 65536 [default: 64]
    #[arg(long, value_name = "MIB", env = "ROLLCALL_QUEUE_MIB")]
    pub queue_mib: Option<Mebibytes>,
}

/// Who may connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Clients with a token that these keys have signed.
    Tokens(Box<Tokens>),
    /// Every client on this machine, as any user.
    Insecure,
}

/// The files of the keys, and what a token must say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tokens {
    pub key: Option<PathBuf>,
    pub jwks: Option<String>,
    pub user_claim: String,
    pub platform_claim: Option<String>,
    pub device_claim: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
}

/// The settings, complete and within their bounds.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub name: String,
    /// The directory of the epoch and the queue.
    pub data: PathBuf,
    pub admission: Admission,
    pub reload: Duration,
    pub tls: Option<CertificateFiles>,
    pub trust_forwarded: bool,
    pub connections_max: usize,
    pub user_connections_max: u32,
    pub address_connections_max: u32,
    pub message_bytes_max: usize,
    pub message_rate_max: u64,
    pub handshake: Duration,
    pub accept_rate: u64,
    pub write: Duration,
    pub ping_ms: u64,
    pub silence_ms: u64,
    pub lease_ms: u64,
    pub lease_every: Duration,
    pub beats_every: Duration,
    pub beats_max: usize,
    pub drain: Duration,
    pub queue_bytes: u64,
}

const NAME_BYTES_MAX: usize = 64;

impl Flags {
    /// Returns the files that hold secrets, each with a description. A key that only verifies may be readable by
    /// everybody.
    pub fn secret_files(&self) -> Vec<(&'static str, PathBuf)> {
        let is_public = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"-----BEGIN PUBLIC"));
        let jwt = self.jwt_key.clone().filter(|path| !is_public(path));
        let files = [
            ("the key of clients' tokens", jwt),
            ("the private key", self.tls_key.clone()),
        ];
        files
            .into_iter()
            .filter_map(|(what, path)| Some((what, path?)))
            .collect()
    }

    /// Takes each setting that is not given here from `file`.
    pub fn or(self, file: Flags) -> Flags {
        Flags {
            gateway_name: self.gateway_name.or(file.gateway_name),
            gateway_insecure: self.gateway_insecure || file.gateway_insecure,
            jwt_key: self.jwt_key.or(file.jwt_key),
            jwks: self.jwks.or(file.jwks),
            reload_seconds: self.reload_seconds.or(file.reload_seconds),
            jwt_user_claim: self.jwt_user_claim.or(file.jwt_user_claim),
            jwt_platform_claim: self.jwt_platform_claim.or(file.jwt_platform_claim),
            jwt_device_claim: self.jwt_device_claim.or(file.jwt_device_claim),
            jwt_issuer: self.jwt_issuer.or(file.jwt_issuer),
            jwt_audience: self.jwt_audience.or(file.jwt_audience),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            trust_forwarded: self.trust_forwarded || file.trust_forwarded,
            connections_max: self.connections_max.or(file.connections_max),
            user_connections_max: self.user_connections_max.or(file.user_connections_max),
            address_connections_max: self.address_connections_max.or(file.address_connections_max),
            message_bytes_max: self.message_bytes_max.or(file.message_bytes_max),
            message_rate_max: self.message_rate_max.or(file.message_rate_max),
            handshake_ms: self.handshake_ms.or(file.handshake_ms),
            accept_rate: self.accept_rate.or(file.accept_rate),
            write_ms: self.write_ms.or(file.write_ms),
            ping_ms: self.ping_ms.or(file.ping_ms),
            silence_ms: self.silence_ms.or(file.silence_ms),
            lease_ms: self.lease_ms.or(file.lease_ms),
            lease_every_ms: self.lease_every_ms.or(file.lease_every_ms),
            beats_every_ms: self.beats_every_ms.or(file.beats_every_ms),
            beats_max: self.beats_max.or(file.beats_max),
            drain_ms: self.drain_ms.or(file.drain_ms),
            queue_mib: self.queue_mib.or(file.queue_mib),
        }
    }

    /// Checks all settings once, for a gateway with this listen address and this directory for the data that it must
    /// not lose.
    pub fn config(self, listen: SocketAddr, data: PathBuf) -> anyhow::Result<Config> {
        let name = self.gateway_name.clone().unwrap_or_else(|| "edge".to_owned());
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || name.contains(['/', '\0']) || name.starts_with('.') {
            let problem = format!(
                "must have 1 to {NAME_BYTES_MAX} bytes, no / and no dot in front, since a directory is named after it, \
                 not {name:?}"
            );
            bail!(Invalid::new("gateway_name", problem));
        }
        let admission = self.admission(listen)?;
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(chain), Some(key)) => Some(CertificateFiles { chain, key }),
            (None, None) => None,
            (Some(_), None) => bail!(Invalid::new("tls_cert", "requires --tls-key, the private key")),
            (None, Some(_)) => bail!(Invalid::new("tls_key", "requires --tls-cert, the certificate chain")),
        };
        let ms = |name: &'static str, value: Option<Milliseconds>, default: u64, least: u64, most: u64| {
            Milliseconds::within(name, value, default, least, most).map(Duration::from_millis)
        };
        const MIB: u64 = 1 << 20;
        let lease_ms = Milliseconds::within("lease_ms", self.lease_ms, 30_000, 1_000, 86_400_000)?;
        Ok(Config {
            listen,
            data,
            name,
            admission,
            reload: Duration::from_millis(Seconds::within(
                "reload_seconds",
                self.reload_seconds,
                60_000,
                1_000,
                86_400_000,
            )?),
            tls,
            trust_forwarded: self.trust_forwarded,
            connections_max: within("connections_max", self.connections_max, 100_000, 1, 10_000_000)? as usize,
            user_connections_max: within("user_connections_max", self.user_connections_max, 64, 1, 10_000)? as u32,
            address_connections_max: within(
                "address_connections_max",
                self.address_connections_max,
                4_096,
                1,
                10_000_000,
            )? as u32,
            message_bytes_max: Bytes::within("message_bytes_max", self.message_bytes_max, 65_536, 1_024, 1 << 20)?
                as usize,
            message_rate_max: within("message_rate_max", self.message_rate_max, 25, 1, 10_000)?,
            handshake: ms("handshake_ms", self.handshake_ms, 10_000, 100, 60_000)?,
            accept_rate: within("accept_rate", self.accept_rate, 1_000, 1, 1_000_000)?,
            write: ms("write_ms", self.write_ms, 10_000, 100, 600_000)?,
            ping_ms: Milliseconds::within("ping_ms", self.ping_ms, 25_000, 100, 600_000)?,
            silence_ms: Milliseconds::within("silence_ms", self.silence_ms, 30_000, 0, 3_600_000)?,
            lease_ms,
            lease_every: ms("lease_every_ms", self.lease_every_ms, lease_ms / 6, 100, lease_ms / 2)?,
            beats_every: ms("beats_every_ms", self.beats_every_ms, 10_000, 10, 60_000)?,
            beats_max: within("beats_max", self.beats_max, 10_000, 1, 100_000)? as usize,
            drain: ms("drain_ms", self.drain_ms, 10_000, 0, 600_000)?,
            queue_bytes: Mebibytes::within("queue_mib", self.queue_mib, 64 * MIB, MIB, 65_536 * MIB)?,
        })
    }

    fn admission(&self, listen: SocketAddr) -> anyhow::Result<Admission> {
        if self.gateway_insecure {
            if self.jwt_key.is_some() || self.jwks.is_some() {
                bail!(Invalid::new(
                    "gateway_insecure",
                    "requires no token, so it cannot be combined with --jwt-key or --jwks"
                ));
            }
            if !listen.ip().is_loopback() {
                let problem = format!(
                    "accepts every client as any user, so it is allowed only for a loopback address such as \
                     127.0.0.1:8090, not {listen}"
                );
                bail!(Invalid::new("gateway_insecure", problem));
            }
            return Ok(Admission::Insecure);
        }
        if self.jwt_key.is_none() && self.jwks.is_none() {
            bail!(
                "a gateway requires --jwt-key or --jwks to verify the tokens of its users; to try it out on this machine \
                 only, use --gateway-insecure, which takes the user from ?user="
            );
        }
        if let Some(place) = &self.jwks
            && place.contains("://")
            && !place.starts_with("http://")
            && !place.starts_with("https://")
        {
            let shown = address::masked(place);
            let problem = format!("must be a file, or a URL that begins with http:// or https://, not {shown:?}");
            bail!(Invalid::new("jwks", problem));
        }
        Ok(Admission::Tokens(Box::new(Tokens {
            key: self.jwt_key.clone(),
            jwks: self.jwks.clone(),
            user_claim: self.jwt_user_claim.clone().unwrap_or_else(|| "sub".to_owned()),
            platform_claim: self.jwt_platform_claim.clone(),
            device_claim: self.jwt_device_claim.clone(),
            issuer: self.jwt_issuer.clone(),
            audience: self.jwt_audience.clone(),
        })))
    }
}
