//! How nodes know each other: by a secret that all of them have and that never goes over the wire.
//!
//! A request of a node carries a proof, a keyed hash over when, who asks whom, and for what; the answer carries one over
//! the request's proof, status and body. A proof is of use at the node that it was made for and nowhere else, so a node that
//! has itself asked, by writing an address into the topic of owners, learns nothing with which it could ask others, and
//! can answer nothing that is believed. A caller's own token stays at the node that it was sent to: that node has checked
//! it, and says in its proof which scope it has found.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::sync::atomic::{AtomicU64, Ordering};

/// The header of a request: `v1 TIME_MS NUMBER SCOPE HASH`.
pub const PROOF: HeaderName = HeaderName::from_static("rollcall-peer");
/// The header of an answer: a hash.
pub const ANSWER: HeaderName = HeaderName::from_static("rollcall-peer-answer");
/// Nodes ask each other questions and nothing else.
const SCOPE: &str = "read";
/// How far apart the clocks of two nodes may be.
const SKEW_MS: u64 = 5 * 60 * 1_000;

/// The secret, as a key.
#[derive(Clone)]
pub struct PeerKey([u8; 32]);

/// A proof in a request, which its answer must match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof(blake3::Hash);

/// What is asked of whom.
#[derive(Clone, Copy)]
pub struct PeerQuestion<'a> {
    /// The URLs of both nodes, as they stand in the topic of owners.
    pub from: &'a str,
    pub to: &'a str,
    pub method: &'a Method,
    /// With the query.
    pub path: &'a str,
}

impl PeerKey {
    pub fn new(secret: &str) -> PeerKey {
        PeerKey(blake3::derive_key("rollcall: from node to node, v1", secret.as_bytes()))
    }

    /// Over parts that may hold anything: each with its length.
    fn hash(&self, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }

    fn of_question(&self, time_ms: u64, number: u64, scope: &str, question: PeerQuestion<'_>) -> blake3::Hash {
        let PeerQuestion { from, to, method, path } = question;
        let (time, number) = (time_ms.to_be_bytes(), number.to_be_bytes());
        let method = method.as_str();
        let texts = ["question", scope, from, to, method, path].map(str::as_bytes);
        let [question, scope, from, to, method, path] = texts;
        self.hash(&[question, &time, &number, scope, from, to, method, path])
    }

    /// The proof of a question, and the header that carries it.
    pub fn prove(&self, now_ms: u64, question: PeerQuestion<'_>) -> (Proof, HeaderValue) {
        // No two questions have the same proof, so no answer fits another question.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let hash = self.of_question(now_ms, number, SCOPE, question);
        let text = format!("v1 {now_ms} {number} {SCOPE} {}", hash.to_hex());
        let header = HeaderValue::from_str(&text).expect("it has letters, digits and spaces alone");
        (Proof(hash), header)
    }

    /// The proof in a request, if it is one of ours for this very question and not old. An error says what is wrong.
    pub fn check(&self, headers: &HeaderMap, now_ms: u64, question: PeerQuestion<'_>) -> Result<Proof, &'static str> {
        let text = headers.get(PROOF).and_then(|value| value.to_str().ok());
        let parts: Vec<&str> = text.unwrap_or_default().split(' ').collect();
        let ["v1", time_ms, number, SCOPE, hash] = parts[..] else {
            return Err("its proof is of another version");
        };
        let numbers = (time_ms.parse(), number.parse(), blake3::Hash::from_hex(hash));
        let (Ok(time_ms), Ok(number), Ok(given)) = numbers else {
            return Err("its proof cannot be read");
        };
        // Comparing hashes takes the same time wherever they differ.
        if self.of_question(time_ms, number, SCOPE, question) != given {
            return Err(
                "its proof is wrong; check that --peer-token-file is the same on all nodes, and that --advertise \
                        is right",
            );
        }
        if now_ms.abs_diff(time_ms) > SKEW_MS {
            return Err("its proof is more than 5 minutes old or ahead; check the clocks of both nodes");
        }
        Ok(Proof(given))
    }

    /// What the answer to a question carries.
    pub fn answer(&self, proof: Proof, status: StatusCode, body: &[u8]) -> HeaderValue {
        let hash = self.of_answer(proof, status, body).to_hex();
        HeaderValue::from_str(&hash).expect("it has hexadecimal digits alone")
    }

    /// Whether an answer is from a node that has the secret too.
    pub fn is_answered(&self, proof: Proof, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> bool {
        let given = headers.get(ANSWER).and_then(|value| blake3::Hash::from_hex(value).ok());
        given.is_some_and(|given| given == self.of_answer(proof, status, body))
    }

    fn of_answer(&self, proof: Proof, status: StatusCode, body: &[u8]) -> blake3::Hash {
        let status = status.as_u16().to_be_bytes();
        self.hash(&[b"answer", proof.0.as_bytes(), &status, body])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const QUESTION: PeerQuestion<'_> = PeerQuestion {
        from: "http://a:1",
        to: "http://b:1",
        method: &Method::GET,
        path: "/v1/users/alice?at_least=3",
    };

    fn headers(value: HeaderValue) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(PROOF, value);
        headers
    }

    #[test]
    fn a_proof_is_good_for_the_node_the_path_and_the_time_that_it_was_made_for_alone() {
        let key = PeerKey::new("a secret of the nodes");
        let (proof, header) = key.prove(NOW_MS, QUESTION);
        let headers = headers(header.clone());
        assert_eq!(key.check(&headers, NOW_MS + 1_000, QUESTION), Ok(proof));
        let others = [
            PeerQuestion {
                from: "http://c:1",
                ..QUESTION
            },
            // Who was asked cannot ask others with it.
            PeerQuestion {
                to: "http://a:1",
                ..QUESTION
            },
            PeerQuestion {
                method: &Method::POST,
                ..QUESTION
            },
            PeerQuestion {
                path: "/v1/users/bob",
                ..QUESTION
            },
            PeerQuestion {
                from: "http://a:1http",
                to: "://b:1",
                ..QUESTION
            },
        ];
        for other in others {
            assert!(key.check(&headers, NOW_MS, other).is_err());
        }
        for later_ms in [NOW_MS + SKEW_MS + 1, NOW_MS - SKEW_MS - 1] {
            assert!(key.check(&headers, later_ms, QUESTION).is_err());
        }
        assert!(
            PeerKey::new("another secret")
                .check(&headers, NOW_MS, QUESTION)
                .is_err()
        );
        let text = header.to_str().expect("text");
        for altered in [
            text.replace("read", "admin"),
            text.replace("v1", "v2"),
            text.replace("1800000000000", "1800000000001"),
            text.replace(' ', "  "),
            String::new(),
            "v1 x y read z".to_owned(),
        ] {
            let headers = self::headers(HeaderValue::from_str(&altered).expect("a header"));
            assert!(key.check(&headers, NOW_MS, QUESTION).is_err(), "{altered:?}");
        }
    }

    #[test]
    fn an_answer_is_believed_only_from_one_that_has_the_secret() {
        let key = PeerKey::new("a secret of the nodes");
        let (proof, _) = key.prove(NOW_MS, QUESTION);
        let (other, _) = key.prove(NOW_MS, QUESTION);
        let believed = |key: &PeerKey, answered: HeaderValue, status, body: &[u8]| {
            let headers = HeaderMap::from_iter([(ANSWER, answered)]);
            key.is_answered(proof, status, &headers, body)
        };
        let answer = key.answer(proof, StatusCode::OK, b"{}");
        assert!(believed(&key, answer.clone(), StatusCode::OK, b"{}"));
        assert!(!believed(&key, answer.clone(), StatusCode::NOT_FOUND, b"{}"));
        assert!(!believed(&key, answer.clone(), StatusCode::OK, b"{\"forged\":true}"));
        assert!(!believed(
            &key,
            key.answer(other, StatusCode::OK, b"{}"),
            StatusCode::OK,
            b"{}"
        ));
        assert!(!believed(&PeerKey::new("another"), answer, StatusCode::OK, b"{}"));
        assert!(!key.is_answered(proof, StatusCode::OK, &HeaderMap::new(), b"{}"));
    }
}
