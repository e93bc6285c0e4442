//! Bodies of requests: read within bounds of size and time, out of one budget for all of them.
//!
//! A body is read only after its sender was let in by the head alone, and counts against the budget byte by byte for as
//! long as its request is answered; so does what is made of it where that may be far more. Where the budget is used up
//! the answer is 503 `busy`, and nothing was taken.

use super::ApiError;
use axum::body::BodyDataStream;
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use flate2::read::MultiGzDecoder;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest body of a request, in bytes; of one that is compressed, of what it becomes too.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// How many bytes of bodies, and of what is made of them, are in memory at once, if nothing else is set.
pub const BUDGET_BYTES_DEFAULT: usize = 256 << 20;
/// A body comes on within this.
const PROGRESS: Duration = Duration::from_secs(10);
/// And as a whole within this.
const WHOLE: Duration = Duration::from_secs(60);
const INFLATED_AT_ONCE: usize = 64 << 10;

/// Bytes for all requests together.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    pub fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(bytes)))
    }

    pub fn hold(&self) -> BudgetShare {
        BudgetShare {
            budget: self.clone(),
            permits: None,
        }
    }
}

/// What one request has of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct BudgetShare {
    budget: Budget,
    permits: Option<OwnedSemaphorePermit>,
}

impl BudgetShare {
    /// Takes more of the budget, or says that there is no more.
    pub fn more(&mut self, bytes: usize) -> Result<(), ApiError> {
        let busy = || {
            let message =
                "other requests use all memory for bodies (--http-body-mib); nothing was accepted, try again shortly";
            ApiError::unavailable("busy", message)
        };
        let count = u32::try_from(bytes).map_err(|_| busy())?;
        let taken = self.budget.0.clone().try_acquire_many_owned(count);
        let taken = taken.map_err(|_| busy())?;
        match &mut self.permits {
            Some(permits) => permits.merge(taken),
            None => self.permits = Some(taken),
        }
        Ok(())
    }
}

/// A body, whole and inflated.
#[derive(Debug)]
pub struct Payload {
    pub bytes: Vec<u8>,
    pub held: BudgetShare,
}

impl Payload {
    /// Returns the body without a byte order mark, which some editors write before JSON.
    pub fn unmarked(&self) -> &[u8] {
        self.bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.bytes)
    }

    /// Reads the body as a JSON object.
    pub fn object<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let bytes = self.unmarked();
        // serde would take an array for an object whose fields have no names.
        match bytes.trim_ascii_start().first() {
            Some(b'{') | None => serde_json::from_slice(bytes).map_err(|error| ApiError::json(&error)),
            Some(_) => Err(ApiError::bad_request(
                "bad_json",
                "the body must be a JSON object".to_owned(),
            )),
        }
    }
}

impl<S> FromRequest<S> for Payload
where
    Budget: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Payload, ApiError> {
        let encoding = Encoding::of(request.headers())?;
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
            return Err(too_large());
        }
        let mut held = Budget::from_ref(state).hold();
        let body = request.into_body().into_data_stream();
        let whole = tokio::time::timeout(WHOLE, read(body, &mut held)).await;
        let bytes = whole.unwrap_or_else(|_| Err(too_slow(WHOLE, "whole")))?;
        let bytes = match encoding {
            Encoding::Identity => bytes,
            Encoding::Gzip => inflate(&bytes, &mut held)?,
        };
        Ok(Payload { bytes, held })
    }
}

async fn read(mut body: BodyDataStream, held: &mut BudgetShare) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    loop {
        let next = tokio::time::timeout(PROGRESS, body.next()).await;
        match next.map_err(|_| too_slow(PROGRESS, "coming on"))? {
            None => return Ok(bytes),
            Some(Ok(part)) => {
                if bytes.len() + part.len() > BODY_BYTES_MAX {
                    return Err(too_large());
                }
                held.more(part.len())?;
                bytes.extend_from_slice(&part);
            }
            Some(Err(error)) => {
                let message = format!("the body cannot be read: {error}");
                return Err(ApiError::bad_request("bad_body", message));
            }
        }
    }
}

fn inflate(packed: &[u8], held: &mut BudgetShare) -> Result<Vec<u8>, ApiError> {
    let mut decoder = MultiGzDecoder::new(packed);
    let mut bytes = Vec::new();
    let mut part = vec![0; INFLATED_AT_ONCE];
    loop {
        match decoder.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                if bytes.len() + count > BODY_BYTES_MAX {
                    return Err(too_large());
                }
                held.more(count)?;
                bytes.extend_from_slice(&part[..count]);
            }
            Err(error) => {
                let message = format!("the body is not the gzip that Content-Encoding says it is: {error}");
                return Err(ApiError::bad_request("bad_body", message));
            }
        }
    }
}

/// How a body is compressed.
enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Result<Encoding, ApiError> {
        let Some(encoding) = headers.get(header::CONTENT_ENCODING) else {
            return Ok(Encoding::Identity);
        };
        match encoding.as_bytes().trim_ascii().to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(Encoding::Identity),
            b"gzip" | b"x-gzip" => Ok(Encoding::Gzip),
            other => {
                let other = String::from_utf8_lossy(other).into_owned();
                let message = format!("Content-Encoding must be gzip or absent, not {other:?}");
                Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "bad_encoding",
                    message,
                ))
            }
        }
    }
}

fn too_large() -> ApiError {
    let message = format!("a body may have at most {BODY_BYTES_MAX} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

fn too_slow(limit: Duration, what: &str) -> ApiError {
    let message = format!("the body was not {what} within {} s", limit.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let budget = Budget::new(10);
        let mut first = budget.hold();
        first.more(4).expect("there is enough");
        first.more(4).expect("there is enough");
        let mut second = budget.hold();
        assert_eq!(
            second.more(3).expect_err("no more").status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        drop(first);
        second.more(10).expect("all of it");
    }
}
