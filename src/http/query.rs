//! Query strings: the parameters of a route, and what is wrong with them.

use super::ApiError;
use crate::api::routes::RouteId;
use percent_encoding::percent_decode_str;
use std::collections::BTreeSet;

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

/// Refuses parameters that a route does not have, that are given more than once and may not be, or that are not UTF-8: a misspelt
/// filter would be no filter, of two values one would be ignored, and a byte that is replaced would name somebody else.
pub(super) fn only(query: Option<&str>, route: RouteId) -> Result<(), ApiError> {
    let (query, route) = (query.unwrap_or_default(), route.route());
    let bad = |message| Err(ApiError::bad_request("bad_parameter", message));
    let names = || {
        let pairs = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
        pairs.filter(|name| !HARMLESS.contains(&&**name))
    };
    let known: Vec<&str> = route.query_names().collect();
    if let Some(name) = names().find(|name| !known.contains(&&**name)) {
        let has = known.join("`, `");
        return bad(format!("{name:?} is not a parameter of this path, which has `{has}`"));
    }
    let is_not_utf8 = |pair: &&str| percent_decode_str(pair).decode_utf8().is_err();
    if let Some(pair) = query.split('&').find(is_not_utf8) {
        return bad(format!("the query string is not UTF-8: {pair:?}"));
    }
    let mut seen = BTreeSet::new();
    let mut once = names().filter(|name| !route.may_repeat(name));
    match once.find(|name| !seen.insert(name.clone())) {
        Some(name) => bad(format!("`{name}` is given more than once")),
        None => Ok(()),
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
