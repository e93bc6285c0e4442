//! Refusals and failures, as the body of a response. What each failure is answered with is in [`failures`](super::failures).

use crate::api::error::{ErrorAnswer, ErrorDetail};
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::borrow::Cow;

/// `{"error":{"code","message",…}}` with its status.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// Of an event in a request: its index and its field.
    event: Option<(usize, Cow<'static, str>)>,
    /// The oldest cursor that still works.
    oldest: Option<String>,
    retry_after_s: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            code,
            message: message.into(),
            event: None,
            oldest: None,
            retry_after_s: None,
        }
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub fn not_found(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, code, message)
    }

    pub fn method(method: &Method) -> ApiError {
        let message = format!("this path does not take {method}; the Allow header says what it takes");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// An event of a request is wrong.
    pub fn event(index: usize, field: impl Into<Cow<'static, str>>, message: impl Into<String>) -> ApiError {
        ApiError::bad_request("bad_event", message).at(index, field)
    }

    /// Says which event of the request it is about.
    pub fn at(self, index: usize, field: impl Into<Cow<'static, str>>) -> ApiError {
        ApiError {
            event: Some((index, field.into())),
            ..self
        }
    }

    pub fn gone(oldest: String) -> ApiError {
        let message = format!("the log no longer reaches back to this cursor; the oldest one is {oldest}");
        ApiError {
            oldest: Some(oldest),
            ..ApiError::new(StatusCode::GONE, "gone", message)
        }
    }

    /// Try again shortly.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            retry_after_s: Some(1),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
        }
    }

    /// Says in the message what it is about.
    pub fn about(self, what: &str) -> ApiError {
        ApiError {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn json(error: &serde_json::Error) -> ApiError {
        // serde_json ends its messages with line and column.
        ApiError::bad_request(
            "bad_json",
            format!("the body is not the JSON that is expected: {error}"),
        )
    }

    /// A body that is no text, which JSON must be.
    pub fn not_utf8(body: &[u8], error: &std::str::Utf8Error) -> ApiError {
        let before = &body[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count();
        let message = format!("the body is not JSON: not UTF-8 at line {line} column {column}");
        ApiError::bad_request("bad_json", message)
    }

    /// The object for a body or for an `error` event.
    pub fn body(&self) -> Vec<u8> {
        let (index, field) = self.event.clone().unzip();
        let error = ErrorDetail {
            code: self.code.into(),
            message: self.message.clone(),
            event: index.map(|index| index as u64),
            field,
            oldest: self.oldest.clone(),
        };
        serde_json::to_vec(&ErrorAnswer { error }).expect("an error is made of names, numbers and text")
    }
}

impl ApiError {
    /// The whole response as bytes, for a client with whom there is no request: the connection ends after it.
    pub fn raw(&self) -> Vec<u8> {
        let body = self.body();
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut raw = format!(
            "HTTP/1.1 {} {reason}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             cache-control: no-store\r\ncontent-length: {}\r\n",
            self.status.as_u16(),
            body.len()
        );
        if let Some(seconds) = self.retry_after_s {
            raw.push_str(&format!("retry-after: {seconds}\r\n"));
        }
        raw.push_str("\r\n");
        let mut raw = raw.into_bytes();
        raw.extend_from_slice(&body);
        raw
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = super::json(self.body());
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<PathRejection> for ApiError {
    fn from(_: PathRejection) -> ApiError {
        // The routes take one segment as text, so this is all that can be wrong with it.
        let message = "the user id in the path is not UTF-8 once its %-escapes are decoded";
        ApiError::bad_request("bad_user", message)
    }
}
