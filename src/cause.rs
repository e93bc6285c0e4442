//! Why a request failed, in one clause: the innermost cause, without the URL, which may hold a password.

use std::error::Error;
use std::io;

/// Returns a clause such as `connection refused`, to stand behind a colon.
pub fn reason(error: reqwest::Error) -> String {
    if let Some(status) = error.status() {
        return format!("it answered {status}");
    }
    if error.is_timeout() {
        return "no answer came in time".to_owned();
    }
    let error = error.without_url();
    let mut innermost: &dyn Error = &error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    match innermost.downcast_ref::<io::Error>() {
        Some(cause) => of_io(cause),
        None => innermost.to_string(),
    }
}

/// An error of the system without its number, and without a capital letter inside a sentence.
fn of_io(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    let first = letters
        .next()
        .map_or(String::new(), |first| first.to_lowercase().to_string());
    format!("{first}{}", letters.as_str())
}
