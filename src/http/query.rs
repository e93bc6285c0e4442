//! Query strings: the parameters of a route, and what is wrong with them.

use super::ApiError;
use crate::api::routes::RouteId;

/// The one value of a parameter in a query string.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// All values of a parameter in a query string.
pub(super) fn parameters(query: Option<&str>, name: &str) -> impl Iterator<Item = String> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs
        .filter(move |(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// What clients and libraries add for caches not to answer; it means nothing.
const HARMLESS: [&str; 5] = ["_", "cb", "nocache", "t", "ts"];

/// Refuses parameters that a route does not have: a misspelt filter would be no filter.
pub(super) fn only(query: Option<&str>, route: RouteId) -> Result<(), ApiError> {
    let names: Vec<&str> = route.route().query_names().collect();
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| !names.contains(&&**key) && !HARMLESS.contains(&&**key)) {
        None => Ok(()),
        Some((key, _)) => {
            let has = names.join("`, `");
            let message = format!("{key:?} is not a parameter of this path, which has `{has}`");
            Err(ApiError::bad_request("bad_parameter", message))
        }
    }
}

/// A parameter in a query string that is there or not: `strict`, `strict=1`, `strict=true`.
pub(super) fn flag(query: Option<&str>, name: &'static str) -> Result<bool, ApiError> {
    match parameter(query, name).as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("" | "1" | "true") => Ok(true),
        Some(other) => {
            let message = format!("`{name}` must be true or false, not {other:?}");
            Err(ApiError::bad_request("bad_parameter", message))
        }
    }
}

/// A number in a query string, within the bounds that the route gives it.
pub(super) fn number(query: Option<&str>, route: RouteId, name: &'static str) -> Result<Option<u64>, ApiError> {
    let bounds = route.route().bounds(name);
    let Some(text) = parameter(query, name) else {
        return Ok(None);
    };
    let number = text.parse().ok().filter(|number| bounds.contains(number));
    let bad = || {
        ApiError::bad_request(
            "bad_parameter",
            format!(
                "`{name}` must be an integer from {} to {}, not {text:?}",
                bounds.start(),
                bounds.end()
            ),
        )
    };
    number.map(Some).ok_or_else(bad)
}
