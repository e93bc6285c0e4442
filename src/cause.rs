//! The cause of a failed request in one clause: the innermost error, without the URL, which may contain a password.

use std::error::Error;
use std::io;
use tokio_rustls::rustls;

/// Returns a clause such as `connection refused`, to be written after a colon.
pub fn reason(error: reqwest::Error) -> String {
    if let Some(status) = error.status() {
        return format!("it responded with {status}");
    }
    if error.is_timeout() {
        return "no response in time".to_owned();
    }
    innermost(&error.without_url())
}

/// Returns the innermost of the errors that caused an error, as a clause.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    let text = match innermost.downcast_ref::<io::Error>() {
        Some(cause) => of_io(cause),
        None => innermost.to_string(),
    };
    with_hint(text)
}

/// Whether something answered a request, though not as was expected: then a server runs there. A connection that could not be made
/// says nothing about that, unless it was TLS that failed; nor does a request that could not be made, or that got no answer in time.
pub fn is_answered(error: &reqwest::Error) -> bool {
    let has_no_answer = error.is_builder() || error.is_timeout();
    !has_no_answer && (!error.is_connect() || is_of_tls(error))
}

/// Whether an error is one of TLS: something answered, but not in TLS, or its certificate is not accepted.
pub fn is_of_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // What an error of the system wraps is not its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<rustls::Error>() || wrapped.is_some_and(|wrapped| is_of_tls(wrapped)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What TLS says of a certificate that is not accepted, before the cause.
const CERTIFICATE: &str = "invalid peer certificate: ";

/// Says why a certificate is not accepted, and what is to be done where the cause alone does not say it.
fn certificate(cause: &str) -> String {
    let why = if cause.contains("CaUsedAsEndEntity") {
        "the certificate is marked as a CA (CA:TRUE), and that of a server must not be; make one with basicConstraints=CA:FALSE"
    } else if cause.contains("UnknownIssuer") {
        "UnknownIssuer, it is not from a CA that is trusted here"
    } else {
        cause
    };
    format!("its certificate is not accepted: {why}")
}

/// What libraries say of a connection that ended in the middle of a response.
const CUT: [&str; 3] = [
    "unexpected EOF during chunk size line",
    "connection closed before message completed",
    "end of file before message length reached",
];

/// Replaces the texts of libraries that mean that the connection ended, and adds what is probably wrong to the two that mean
/// that the URL has the wrong scheme.
fn with_hint(text: String) -> String {
    if CUT.contains(&text.as_str()) {
        return "the connection ended before the response was complete".to_owned();
    }
    if let Some(cause) = text.strip_prefix(CERTIFICATE) {
        return certificate(cause);
    }
    if text.contains("InvalidContentType") {
        return format!("the answer is not TLS ({text}); if the server has no TLS, use http://");
    }
    if text.contains("invalid HTTP version") {
        return format!("the answer is not HTTP ({text}); if the server has TLS, use https://");
    }
    text
}

/// Returns the text of a system error without its number, and without the capital letter at its start.
fn of_io(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    let first = letters
        .next()
        .map_or(String::new(), |first| first.to_lowercase().to_string());
    format!("{first}{}", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_connection_that_ends_in_the_middle_is_said_in_plain_words() {
        let answers: [&[u8]; 4] = [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ];
        for answer in answers {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}/", listener.local_addr().expect("an address"));
            let serving = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let _ = stream.read(&mut [0; 1_024]).await;
                let _ = stream.write_all(answer).await;
            });
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let sent = client.get(url).send().await;
            let error = match sent {
                Ok(response) => response.bytes().await.expect_err("it is cut"),
                Err(error) => error,
            };
            assert_eq!(reason(error), "the connection ended before the response was complete");
            serving.await.expect("it answers");
        }
    }

    #[tokio::test]
    async fn a_wrong_scheme_is_explained() {
        // What a server answers in HTTP to a TLS handshake, and in TLS (an alert) to a request in HTTP.
        let answers: [(&str, &[u8], &str); 2] = [
            ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "use http://"),
            ("http", b"\x15\x03\x01\0\x02\x02\x0a", "use https://"),
        ];
        for (scheme, answer, hint) in answers {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("{scheme}://{}/", listener.local_addr().expect("an address"));
            let serving = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let _ = stream.read(&mut [0; 1_024]).await;
                let _ = stream.write_all(answer).await;
            });
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let error = client.get(url).send().await.expect_err("another protocol");
            let why = reason(error);
            assert!(why.ends_with(hint), "{why}");
            serving.await.expect("it answers");
        }
    }

    #[test]
    fn a_certificate_that_is_not_accepted_is_named_with_its_mistake() {
        let why = |cause: &str| with_hint(format!("{CERTIFICATE}{cause}"));
        let of_ca = why("Other(OtherError(CaUsedAsEndEntity))");
        assert!(
            of_ca.starts_with("its certificate is not accepted: ") && of_ca.contains("CA:TRUE"),
            "{of_ca}"
        );
        assert!(why("UnknownIssuer").contains("not from a CA that is trusted here"));
        let expired = "certificate expired: verification time 1, but certificate is not valid after 0";
        assert_eq!(why(expired), format!("its certificate is not accepted: {expired}"));
    }
}
