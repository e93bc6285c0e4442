//! A setting that cannot be used.

use std::fmt;

/// Names the setting and says what is wrong with its value. Where the value came from is said by what knows it:
/// [`super::Flags::config`] for the file, the command line for flags and variables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// As in the file: with underscores.
    pub setting: &'static str,
    /// What follows the name in a sentence; never holds a secret.
    pub problem: String,
    /// The file and the line that it is in, if it may have come from there.
    pub line: Option<String>,
}

impl Invalid {
    pub fn new(setting: &'static str, problem: impl Into<String>) -> Invalid {
        Invalid {
            setting,
            problem: problem.into(),
            line: None,
        }
    }

    /// As on the command line: `--retention-hours`.
    pub fn flag(&self) -> String {
        format!("--{}", self.setting.replace('_', "-"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flag(), self.problem)
    }
}

impl std::error::Error for Invalid {}
