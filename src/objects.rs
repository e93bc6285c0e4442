//! Places for objects: a directory or an S3-compatible bucket, opened by URL, and what failed requests mean.

use crate::cause;
use object_store::aws::AmazonS3Builder;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, RetryConfig};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How often one request is retried. After that the caller decides.
const RETRIES: usize = 4;
const RETRY_FOR: Duration = Duration::from_secs(20);

/// Opens a place, `file:///DIRECTORY` or `s3://BUCKET/PREFIX`, and returns the path within it. For S3, credentials and endpoint
/// come from the `AWS_…` variables of the environment, but the bucket only from the URL. Does not access the network yet. An
/// error says what is wrong with the URL or the variables.
pub fn open(
    url: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Arc<dyn ObjectStore>, Key), String> {
    let parsed = Url::parse(url).map_err(|error| error.to_string())?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("it contains credentials; set them with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned());
    }
    let path = Key::from_url_path(parsed.path()).map_err(|error| error.to_string())?;
    match parsed.scheme() {
        // A directory goes with its last file, as a prefix in a bucket does.
        "file" => {
            let files = LocalFileSystem::new().with_fsync(true).with_automatic_cleanup(true);
            Ok((Arc::new(files), path))
        }
        "s3" => {
            let retry = RetryConfig {
                max_retries: RETRIES,
                retry_timeout: RETRY_FOR,
                ..RetryConfig::default()
            };
            let mut builder = AmazonS3Builder::new().with_url(url).with_retry(retry);
            for (name, value) in environment {
                let is_ours = name.starts_with("AWS_") && !name.starts_with("AWS_BUCKET");
                if let Some(key) = is_ours.then(|| name.to_ascii_lowercase().parse().ok()).flatten() {
                    builder = builder.with_config(key, value);
                }
            }
            let objects = builder.build().map_err(|error| error.to_string())?;
            Ok((Arc::new(objects), path))
        }
        other => Err(format!("the scheme {other} is not supported")),
    }
}

/// Returns a URL without its credentials, for messages.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let host = rest.split('/').next().unwrap_or_default();
    match host.rfind('@') {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => url.to_owned(),
    }
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestFailure {
    /// In one clause, without the URL.
    pub cause: String,
    /// The same request may succeed later: the store was not reached, or is overloaded.
    pub may_pass: bool,
    /// What to do about it, where that is known.
    advice: Option<&'static str>,
}

const CREDENTIALS: &str = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the role of the machine, and that \
                           they may list, read, write and delete objects with this prefix";
const NO_CREDENTIALS: &str =
    "without AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY the machine's metadata service is asked for credentials";
const HTTP: &str = "the endpoint has no TLS: set AWS_ALLOW_HTTP=true to use it all the same";
const BUCKET: &str = "create the bucket, or check its name in the URL";
const REGION: &str = "check AWS_REGION and AWS_ENDPOINT";
const UNSUPPORTED: &str = "use a store that supports this request";

impl RequestFailure {
    /// Another request to the same object was under way, so this one was not carried out.
    pub fn conflict() -> RequestFailure {
        RequestFailure {
            cause: "another request to the same object was under way".to_owned(),
            may_pass: true,
            advice: None,
        }
    }

    pub fn of(error: &object_store::Error) -> RequestFailure {
        let text = error.to_string();
        let of = |cause: String, may_pass, advice| RequestFailure {
            cause,
            may_pass,
            advice,
        };
        if let Some(failed) = http_error(error) {
            let cause = match failed.kind() {
                HttpErrorKind::Timeout => "no response in time".to_owned(),
                _ => cause::innermost(failed),
            };
            if cause.contains("scheme is not allowed") {
                return of(cause, false, Some(HTTP));
            }
            // The address of the metadata service on every machine of Amazon.
            let advice = text.contains("//169.254.169.254/").then_some(NO_CREDENTIALS);
            return of(cause, true, advice);
        }
        let Some(status) = status(&text) else {
            let is_region = text.contains("redirect without LOCATION");
            // Some stores answer with 200, and say in the body that it is no success.
            let may_pass = text.contains("Server returned error response");
            let cause = text.rsplit(" - ").next().unwrap_or(&text).to_owned();
            return of(cause, may_pass, is_region.then_some(REGION));
        };
        let (code, message) = (element(&text, "Code"), element(&text, "Message"));
        let cause = match (code, message) {
            (Some(code), Some(message)) => format!("the response is {status}, {code}: {message}"),
            (Some(code), None) => format!("the response is {status}, {code}"),
            (None, _) => format!("the response is {status}"),
        };
        let is_of_the_moment = matches!(code, Some("RequestTimeout" | "SlowDown"));
        let number: u32 = status
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        match number {
            408 | 429 => of(cause, true, None),
            _ if is_of_the_moment => of(cause, true, None),
            501 => of(cause, false, Some(UNSUPPORTED)),
            500.. => of(cause, true, None),
            401 | 403 => of(cause, false, Some(CREDENTIALS)),
            400 if matches!(code, Some("ExpiredToken" | "InvalidToken")) => of(cause, false, Some(CREDENTIALS)),
            404 if code == Some("NoSuchBucket") => of(cause, false, Some(BUCKET)),
            300..400 => of(cause, false, Some(REGION)),
            _ => of(cause, false, None),
        }
    }
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.cause)?;
        self.advice.map_or(Ok(()), |advice| write!(out, "; {advice}"))
    }
}

/// Returns the error of the connection that caused an error.
fn http_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a HttpError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Returns the HTTP status that the text of an error names, such as `403 Forbidden`. The crate does not give it otherwise.
fn status(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.split(':').next().map(str::trim_end)
}

/// Returns the text of an element of the XML with which S3 describes an error.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str) -> RequestFailure {
        let source = text.to_owned().into();
        RequestFailure::of(&object_store::Error::Generic { store: "S3", source })
    }

    fn of_status(status: &str, code: &str) -> RequestFailure {
        failure(&format!(
            "Error performing PUT http://127.0.0.1:9/b/k in 3ms - Server returned non-2xx status code: {status}: \
             <Error><Code>{code}</Code><Message>Said so</Message></Error>"
        ))
    }

    #[test]
    fn a_failed_request_says_what_happened_what_to_do_and_whether_it_may_pass() {
        let denied = of_status("403 Forbidden", "AccessDenied");
        assert_eq!(denied.cause, "the response is 403 Forbidden, AccessDenied: Said so");
        assert!(
            !denied.may_pass && denied.to_string().contains("check AWS_ACCESS_KEY_ID"),
            "{denied}"
        );
        let missing = of_status("404 Not Found", "NoSuchBucket");
        assert!(
            !missing.may_pass
                && missing
                    .to_string()
                    .ends_with("; create the bucket, or check its name in the URL")
        );
        for (status, code) in [
            ("503 Service Unavailable", "SlowDown"),
            ("500 Internal Server Error", "InternalError"),
            ("429 Too Many Requests", "TooMany"),
            ("400 Bad Request", "RequestTimeout"),
        ] {
            assert!(of_status(status, code).may_pass, "{status}");
        }
        for (status, code) in [
            ("501 Not Implemented", "NotImplemented"),
            ("400 Bad Request", "InvalidArgument"),
            ("400 Bad Request", "ExpiredToken"),
            ("404 Not Found", "NoSuchKey"),
        ] {
            assert!(!of_status(status, code).may_pass, "{status} {code}");
        }
        let without_body = failure("Server returned non-2xx status code: 502 Bad Gateway: ");
        assert_eq!(
            (without_body.cause.as_str(), without_body.may_pass),
            ("the response is 502 Bad Gateway", true)
        );
        let other =
            failure("Error performing GET http://h/b in 1ms - Received redirect without LOCATION, this normally");
        assert!(
            !other.may_pass && other.to_string().ends_with("; check AWS_REGION and AWS_ENDPOINT"),
            "{other}"
        );
    }

    #[test]
    fn what_was_not_reached_may_be_reached_later() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let source = Box::new(HttpError::new(HttpErrorKind::Connect, refused));
        let failure = RequestFailure::of(&object_store::Error::Generic { store: "S3", source });
        assert_eq!((failure.cause.as_str(), failure.may_pass), ("connection refused", true));
    }

    #[test]
    fn credentials_of_a_url_are_not_shown() {
        assert_eq!(without_credentials("s3://key:secret@bucket/p"), "s3://…@bucket/p");
        assert_eq!(without_credentials("s3://bucket/p@q"), "s3://bucket/p@q");
        assert_eq!(without_credentials("/a/b"), "/a/b");
    }
}
