//! Addresses to listen on, and URLs that may hold a password.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;
use url::Url;

/// Reads `ADDR:PORT`, where the address may also be a name such as `localhost`; of several the first of IPv4.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    const FORM: &str = "give ADDR:PORT, such as 127.0.0.1:8080";
    if text.contains("://") {
        return Err(format!("is a URL, but an address to listen on is expected: {FORM}"));
    }
    if text.parse::<u16>().is_ok() {
        return Err(format!("is a port alone: {FORM}, here 127.0.0.1:{text}"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("has no port: {FORM}"));
    };
    if port.parse::<u16>().is_err() {
        return Err(format!("has no port from 0 to 65535 after its last colon: {FORM}"));
    }
    if host.is_empty() {
        return Err(format!(
            "has no address before its port: {FORM}, or 0.0.0.0:{port} for every address"
        ));
    }
    if host.contains(':') {
        return Err("is not an address: write IPv6 in brackets, such as [::1]:8080".to_owned());
    }
    let found = text
        .to_socket_addrs()
        .map_err(|error| format!("names a host that is not known here ({error}): {FORM}"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found
        .first()
        .copied()
        .ok_or_else(|| format!("names a host without an address: {FORM}"))
}

/// [`listen`], for a file.
pub fn listen_in_file<'de, D: Deserializer<'de>>(file: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(file)?;
    listen(&text)
        .map(Some)
        .map_err(|problem| D::Error::custom(format!("{text:?} {problem}")))
}

/// The http or https URL of another process. It may hold a password or a token, so it is shown without both: by
/// `Display`, by `Debug`, and in the errors of parsing.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// The URL itself, for whatever sends a request to it.
    pub fn reveal(&self) -> &Url {
        &self.0
    }

    /// Whether it holds a user name or a password.
    pub fn has_credentials(&self) -> bool {
        !self.0.username().is_empty() || self.0.password().is_some()
    }
}

impl FromStr for SecretUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<SecretUrl, String> {
        const FORM: &str = "give http://HOST:PORT or https://HOST";
        let has_scheme = text.starts_with("http://") || text.starts_with("https://");
        match Url::parse(text) {
            Ok(url) if has_scheme && url.has_host() => Ok(SecretUrl(url)),
            Err(error) if has_scheme => Err(format!("is not a URL ({error}): {FORM}")),
            _ => match text.split_once("://") {
                Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                    Err(format!("begins with {scheme}://, which is not supported: {FORM}"))
                }
                _ => Err(format!("does not begin with http:// or https://: {FORM}")),
            },
        }
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(file: D) -> Result<SecretUrl, D::Error> {
        let text = String::deserialize(file)?;
        let problem = |problem| D::Error::custom(format!("{:?} {problem}", masked(&text)));
        text.parse().map_err(problem)
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(masked(self.0.as_str()).trim_end_matches('/'))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns what may be shown of a text that should be a URL: `***` stands for what is before its last `@`, and for its
/// query. It hides too much rather than too little of a text that is no URL.
pub fn masked(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("***@", rest),
        None => ("", rest),
    };
    match rest.find(['?', '#']) {
        Some(end) => format!("{scheme}{user}{}?***", &rest[..end]),
        None => format!("{scheme}{user}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{SecretUrl, listen, masked};

    #[test]
    fn an_address_may_be_a_name_and_what_is_none_is_told_how_to_be_one() {
        for (text, is) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:0", "[::1]:0"),
            ("localhost:8081", "127.0.0.1:8081"),
        ] {
            assert_eq!(listen(text).map(|address| address.to_string()), Ok(is.to_owned()));
        }
        for (text, says) in [
            ("8080", "127.0.0.1:8080"),
            (":8080", "0.0.0.0:8080"),
            ("127.0.0.1", "has no port"),
            ("127.0.0.1:http", "0 to 65535"),
            ("127.0.0.1:65536", "0 to 65535"),
            ("::1:8080", "[::1]:8080"),
            ("http://127.0.0.1:8080", "is a URL"),
            ("no such host:1", "not known here"),
            ("", "has no port"),
        ] {
            let problem = listen(text).expect_err(text);
            assert!(problem.contains(says), "{text}: {problem}");
        }
    }

    #[test]
    fn no_password_and_no_query_is_ever_shown() {
        for text in [
            "http://user:hunter2@host:1/path?key=hunter2",
            "http://hunter2@host/",
            "https://u:p@hunter2@host",
            "https://host/?hunter2",
            "https://host/#hunter2",
            "user:hunter2@nowhere",
            "ftp://u:hunter2@h/x?token=hunter2",
            "http://u:hunter2@",
            "http://u:hunter2@[::1",
        ] {
            assert!(!masked(text).contains("hunter2"), "{}", masked(text));
            match text.parse::<SecretUrl>() {
                Ok(url) => assert!(!format!("{url} {url:?}").contains("hunter2"), "{url}"),
                Err(problem) => assert!(!problem.contains("hunter2"), "{problem}"),
            }
        }
        let url: SecretUrl = "http://u:p@host:81/a/b?c=d".parse().expect("a URL");
        assert_eq!(url.to_string(), "http://***@host:81/a/b?***");
        assert_eq!(url.reveal().as_str(), "http://u:p@host:81/a/b?c=d");
    }
}
