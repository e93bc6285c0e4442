//! The cause of a failed request in one clause: the innermost error, without the URL, which may contain a password.

use std::error::Error;
use std::io;

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
    match innermost.downcast_ref::<io::Error>() {
        Some(cause) => of_io(cause),
        None => innermost.to_string(),
    }
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
