//! What an answer says of a failure that is not the request's: one table.
//!
//! A failure that passes by itself is 503 with `Retry-After`, and its code names what is waited for. 500 is only for what does
//! not pass by itself: damaged data, a refusal that an operator must resolve, or a bug. Every match names all variants, so a
//! new kind of failure does not compile until somebody has decided which of the two it is.

use super::ApiError;
use crate::engine::QueryError;
use crate::engine::past::PastError;
use crate::{log, registry};
use axum::http::StatusCode;
use tokio::task::JoinError;

/// What does not pass by itself.
fn broken(code: &'static str, message: String) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, code, message)
}

/// Retention has removed what is asked for, and asking again does not bring it back.
fn gone(message: String) -> ApiError {
    ApiError::new(StatusCode::GONE, "gone", message)
}

impl From<log::Error> for ApiError {
    fn from(error: log::Error) -> ApiError {
        let message = error.to_string();
        match error {
            log::Error::Busy => ApiError::unavailable("busy", message),
            log::Error::Write(_) => {
                ApiError::unavailable("log_unavailable", format!("{message}; no event was acknowledged"))
            }
            log::Error::Unanswered(_) => ApiError::unavailable("log_unanswered", message),
            // Some records are in the log: what is to be sent again is not the same request.
            log::Error::Partly(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "partly_appended", message),
            log::Error::Fenced { .. } => ApiError::unavailable("moving", message),
            log::Error::Closed => ApiError::unavailable("stopping", "the server is stopping"),
            log::Error::Gone { .. } => gone(message),
            log::Error::Read(_) | log::Error::Open(_) => broken("log_failed", message),
        }
    }
}

impl From<registry::Error> for ApiError {
    fn from(error: registry::Error) -> ApiError {
        let message = error.to_string();
        match error {
            registry::Error::Unreachable { .. } => ApiError::unavailable("registry_unavailable", message),
            registry::Error::Url { .. } | registry::Error::Refused { .. } | registry::Error::NotRegistered { .. } => {
                broken("failed", message)
            }
        }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> ApiError {
        let message = error.to_string();
        match error {
            QueryError::Unavailable | QueryError::Elsewhere => ApiError::unavailable("not_ready", message),
            QueryError::Busy => ApiError::unavailable("busy", message),
            QueryError::StoreUnavailable(_) => ApiError::unavailable("store_unavailable", message),
            QueryError::Failed(_) => broken("failed", message),
        }
    }
}

impl From<PastError> for ApiError {
    fn from(error: PastError) -> ApiError {
        match error {
            PastError::Gone { .. } => gone(error.to_string()),
            PastError::TooMany { .. } => ApiError::bad_request("too_much_to_read", error.to_string()),
            PastError::Cut { .. } | PastError::GivenUp => ApiError::unavailable("not_ready", error.to_string()),
            PastError::Unreadable { .. } => broken("failed", error.to_string()),
            PastError::Log(error) => error.into(),
            PastError::Store(error) => error.into(),
            PastError::Registry(error) => error.into(),
        }
    }
}

/// Work on another thread did not end: it panicked, or the process is stopping.
impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> ApiError {
        match error.is_panic() {
            true => broken(
                "failed",
                "the request failed because of a bug; see the server's log".to_owned(),
            ),
            false => ApiError::unavailable("stopping", "the server is stopping"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::{Offset, Partition};
    use crate::topics::Topic;
    use axum::http::header;
    use axum::response::IntoResponse;

    const P: Partition = Partition(3);

    fn text<T: From<&'static str>>() -> T {
        "x".into()
    }

    /// Checks status and code of each, and that exactly those that pass by themselves say when to try again.
    #[track_caller]
    fn check(cases: Vec<(ApiError, u16, &str)>) {
        for (error, status, code) in cases {
            assert_eq!(
                (error.status().as_u16(), error.code()),
                (status, code),
                "{}",
                error.message()
            );
            assert!(!error.message().is_empty());
            let passes = status == 503 && code != "partly_appended";
            let response = error.into_response();
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), passes, "{code}");
        }
    }

    #[test]
    fn what_passes_by_itself_is_503_with_a_time_to_come_back_and_the_rest_is_not() {
        let log_gone = || log::Error::Gone {
            topic: Topic::Changes,
            partition: P,
            wanted: Offset(1),
            start: Offset(2),
        };
        let unreachable = || registry::Error::Unreachable {
            url: text(),
            cause: text(),
        };
        check(vec![
            (log::Error::Busy.into(), 503, "busy"),
            (log::Error::Write(text()).into(), 503, "log_unavailable"),
            (log::Error::Unanswered(text()).into(), 503, "log_unanswered"),
            (log::Error::Partly(Vec::new().into()).into(), 503, "partly_appended"),
            (log::Error::Fenced { partition: P }.into(), 503, "moving"),
            (log::Error::Closed.into(), 503, "stopping"),
            (log_gone().into(), 410, "gone"),
            (log::Error::Read(text()).into(), 500, "log_failed"),
            (log::Error::Open(text()).into(), 500, "log_failed"),
        ]);
        let url = registry::Error::Url {
            url: text(),
            cause: text(),
        };
        let refused = registry::Error::Refused {
            url: text(),
            subject: text(),
            cause: text(),
        };
        let not_registered = registry::Error::NotRegistered {
            url: text(),
            subject: text(),
            file: "x",
        };
        check(vec![
            (unreachable().into(), 503, "registry_unavailable"),
            (url.into(), 500, "failed"),
            (refused.into(), 500, "failed"),
            (not_registered.into(), 500, "failed"),
        ]);
        check(vec![
            (QueryError::Unavailable.into(), 503, "not_ready"),
            (QueryError::Elsewhere.into(), 503, "not_ready"),
            (QueryError::Busy.into(), 503, "busy"),
            (QueryError::StoreUnavailable(text()).into(), 503, "store_unavailable"),
            (QueryError::Failed(text()).into(), 500, "failed"),
        ]);
        let gone = PastError::Gone {
            topic: Topic::Events,
            partition: P,
            since: None,
        };
        let too_many = PastError::TooMany {
            topic: Topic::Events,
            partition: P,
            most: 1,
        };
        let unreadable = PastError::Unreadable {
            partition: P,
            offset: Offset(1),
            why: text(),
        };
        check(vec![
            (gone.into(), 410, "gone"),
            (too_many.into(), 400, "too_much_to_read"),
            (PastError::Cut { partition: P }.into(), 503, "not_ready"),
            (PastError::GivenUp.into(), 503, "not_ready"),
            (PastError::Log(log_gone()).into(), 410, "gone"),
            (
                PastError::Log(log::Error::Unanswered(text())).into(),
                503,
                "log_unanswered",
            ),
            (
                PastError::Store(QueryError::StoreUnavailable(text())).into(),
                503,
                "store_unavailable",
            ),
            (PastError::Store(QueryError::Failed(text())).into(), 500, "failed"),
            (PastError::Registry(unreachable()).into(), 503, "registry_unavailable"),
            (unreadable.into(), 500, "failed"),
        ]);
    }

    #[test]
    fn a_panic_is_a_bug_and_the_end_of_the_runtime_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let (panicked, cancelled) = runtime.block_on(async {
            let panics: tokio::task::JoinHandle<()> =
                tokio::spawn(async { std::panic::resume_unwind(Box::new("for a test")) });
            let waits = tokio::spawn(std::future::pending::<()>());
            waits.abort();
            (
                panics.await.expect_err("it panicked"),
                waits.await.expect_err("cancelled"),
            )
        });
        check(vec![
            (panicked.into(), 500, "failed"),
            (cancelled.into(), 503, "stopping"),
        ]);
    }
}
