//! The file of bearer tokens: a line each, the token, a space, and what it allows.

use super::Scopes;
use anyhow::{Context as _, anyhow, bail};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

pub(super) const TOKEN_BYTES_MIN: usize = 16;
/// A token of fewer different characters is typed, not made.
const TOKEN_DIFFERENT_MIN: usize = 6;
const NAME_BYTES_MAX: usize = 64;
/// What the third digit of a file's mode may not have.
const OTHERS: u32 = 0o007;

/// Reads the tokens and what each allows. No message shows a token, or what may be one in the wrong place.
pub fn read_tokens(path: &Path) -> anyhow::Result<Vec<(String, Scopes)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the tokens {}", path.display()))?;
    let mut tokens: Vec<(String, Scopes)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = || format!("{}, line {}", path.display(), number + 1);
        let Some((token, scopes)) = line.split_once(char::is_whitespace) else {
            bail!(
                "{}: a token must be followed by its scopes (read, publish, metrics, admin)",
                at()
            );
        };
        if let Some(weak) = weakness(token) {
            bail!("{}: {weak}", at());
        }
        if tokens.iter().any(|(other, _)| other == token) {
            bail!("{}: this token appears twice; give all its scopes in one line", at());
        }
        let scopes = read_scopes(scopes).map_err(|error| anyhow!("{}: {error}", at()))?;
        tokens.push((token.to_owned(), scopes));
    }
    if tokens.is_empty() {
        bail!("{} has no token, so no client could use the server", path.display());
    }
    Ok(tokens)
}

/// Warns of a file of tokens that every user of this machine may read or change.
pub fn warn_if_shared(path: &Path) {
    if let Ok(file) = std::fs::metadata(path)
        && file.permissions().mode() & OTHERS != 0
    {
        tracing::warn!(
            file = %path.display(),
            "every user of this machine can read or change the tokens; restrict the file with chmod o-rwx"
        );
    }
}

/// Why a token could be guessed or sent by nobody.
fn weakness(token: &str) -> Option<String> {
    if token.len() < TOKEN_BYTES_MIN {
        return Some(format!("a token must have at least {TOKEN_BYTES_MIN} characters"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("a token must have visible ASCII characters only, since it is sent in a header".to_owned());
    }
    let different: BTreeSet<u8> = token.bytes().collect();
    (different.len() < TOKEN_DIFFERENT_MIN).then(|| {
        format!(
            "a token must have at least {TOKEN_DIFFERENT_MIN} different characters; make one with `openssl rand -hex 24`"
        )
    })
}

impl Scopes {
    /// The scopes of a token of an issuer. They add up, and what is not known is passed over: it may be meant for others.
    pub fn of_issued<'s>(texts: impl Iterator<Item = &'s str>, name: &str) -> Scopes {
        let mut scopes = Scopes {
            name: Some(name.to_owned()),
            ..Scopes::default()
        };
        let mut unbound = false;
        for text in texts {
            match text.split_once(':') {
                None => match text {
                    "read" => scopes.read = true,
                    "publish" => unbound = true,
                    "metrics" => scopes.metrics = true,
                    "admin" => scopes.admin = true,
                    _ => {}
                },
                Some(("publish", gateway)) if (1..=NAME_BYTES_MAX).contains(&gateway.len()) => {
                    scopes.gateways.push(gateway.to_owned());
                }
                Some(_) => {}
            }
        }
        scopes.publish = unbound || !scopes.gateways.is_empty();
        if unbound {
            scopes.gateways.clear();
        }
        if scopes.admin {
            scopes = Scopes {
                name: scopes.name,
                ..Scopes::everything()
            };
        }
        scopes
    }
}

fn read_scopes(text: &str) -> anyhow::Result<Scopes> {
    const KNOWN: &str = "read, publish, publish:GATEWAY, metrics, admin and name:NAME";
    let mut scopes = Scopes::default();
    let mut unbound = false;
    for (number, scope) in text.split(',').map(str::trim).enumerate() {
        let (scope, of) = match scope.split_once(':') {
            Some((scope, of)) => (scope, Some(of)),
            None => (scope, None),
        };
        match (scope, of) {
            ("read", None) => scopes.read = true,
            ("publish", None) => unbound = true,
            ("metrics", None) => scopes.metrics = true,
            ("admin", None) => scopes.admin = true,
            ("publish", Some(gateway)) if (1..=NAME_BYTES_MAX).contains(&gateway.len()) => {
                scopes.gateways.push(gateway.to_owned());
            }
            ("name", Some(name)) if (1..=NAME_BYTES_MAX).contains(&name.len()) => scopes.name = Some(name.to_owned()),
            // It may be a token, so it is not shown.
            _ if scope.contains(char::is_whitespace) => {
                bail!(
                    "scope {} has a space in it; write a comma between two scopes",
                    number + 1
                )
            }
            _ => bail!("scope {} is unknown; there are {KNOWN}", number + 1),
        }
    }
    if unbound && !scopes.gateways.is_empty() {
        bail!("publish allows every gateway, so publish:GATEWAY beside it has no effect; give only one of them");
    }
    scopes.publish = unbound || !scopes.gateways.is_empty();
    if scopes.admin {
        if !scopes.gateways.is_empty() {
            bail!("admin may publish for every gateway, so publish:GATEWAY beside it has no effect");
        }
        let name = scopes.name.take();
        scopes = Scopes {
            name,
            ..Scopes::everything()
        };
    }
    if !(scopes.read || scopes.publish || scopes.metrics) {
        bail!("a token must have a scope; there are {KNOWN}");
    }
    Ok(scopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, Scopes)>, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tokens");
        std::fs::write(&file, text).expect("written");
        read_tokens(&file).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn scopes_are_what_the_line_says() {
        let tokens = read(
            "edge-0123456789abc publish:edge-1, publish:edge-2,read,name:the edge\nscraper-0123456789 metrics\n\
             operator-0123456789 admin,name:alice\n",
        )
        .expect("valid");
        let (edge, scraper, operator) = (&tokens[0].1, &tokens[1].1, &tokens[2].1);
        assert!(edge.read && edge.publish && !edge.admin && !edge.metrics);
        assert_eq!(edge.gateways, ["edge-1", "edge-2"]);
        assert_eq!(edge.name.as_deref(), Some("the edge"));
        assert!(scraper.metrics && !scraper.read && !scraper.publish && !scraper.admin);
        assert!(operator.admin && operator.read && operator.publish && operator.metrics);
        assert_eq!(operator.name.as_deref(), Some("alice"));
    }

    #[test]
    fn scopes_of_an_issuer_add_up_and_unknown_ones_give_nothing() {
        let of = |texts: &[&str]| Scopes::of_issued(texts.iter().copied(), "oidc:alice");
        let none = Scopes {
            name: Some("oidc:alice".to_owned()),
            ..Scopes::default()
        };
        for texts in [
            &[][..],
            &["", "Read", "readx", "read:all", "publish:", "admin:x", "root", ":"],
        ] {
            assert_eq!(of(texts), none, "{texts:?}");
        }
        let bound = of(&["publish:edge-1", "read", "publish:edge-2"]);
        assert!(bound.publish && bound.read && !bound.admin && !bound.metrics);
        assert_eq!(bound.gateways, ["edge-1", "edge-2"]);
        let unbound = of(&["publish:edge-1", "publish"]);
        assert!(unbound.publish && unbound.gateways.is_empty());
        let admin = of(&["admin", "publish:edge-1"]);
        assert!(admin.admin && admin.read && admin.publish && admin.gateways.is_empty());
    }

    #[test]
    fn what_is_weak_or_wrong_is_refused_and_not_shown() {
        for (line, message) in [
            ("aaaaaaaaaaaaaaaa read", "at least 6 different characters"),
            ("abababababababababab read", "at least 6 different characters"),
            ("0123456789abcde read", "at least 16 characters"),
            ("0123456789äbcdefg read", "visible ASCII"),
            ("read 0123456789abcdefg", "at least 16 characters"),
            ("0123456789abcdefg read,secret-secret-secret", "scope 2 is unknown"),
            ("0123456789abcdefg publish:", "scope 1 is unknown"),
            ("0123456789abcdefg admin name:ops", "scope 1 has a space in it"),
            ("0123456789abcdefg metrics,read publish", "scope 2 has a space in it"),
            ("0123456789abcdefg publish,publish:edge-1", "has no effect"),
            ("0123456789abcdefg admin,publish:edge-1", "has no effect"),
            ("0123456789abcdefg name:alice", "must have a scope"),
            ("0123456789abcdefg", "must be followed by its scopes"),
            ("0123456789abcdefg read\n0123456789abcdefg admin", "appears twice"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(message), "{line}: {error}");
            assert!(
                !error.contains("abcdefg") && !error.contains("secret-secret"),
                "{error}"
            );
        }
    }
}
