//! The TOML file of settings: read as strictly as the command line, with errors that name the line, the key and what it
//! takes. A value is never quoted: it may be a password.

use super::Flags;
use crate::schema::nearest::did_you_mean;
use anyhow::{Context as _, anyhow};
use clap::Args as _;
use std::path::{Path, PathBuf};

/// A file that was read, and where its keys stand.
pub(super) struct SettingsFile {
    path: PathBuf,
    text: String,
    pub flags: Flags,
}

impl SettingsFile {
    pub fn read(path: &Path) -> anyhow::Result<SettingsFile> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the settings {}", path.display()))?;
        let flags = toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or(text.len(), |span| span.start.min(text.len()));
            let line = text[..before].matches('\n').count();
            let (key, value) = text.lines().nth(line).map_or(("", ""), key_and_value);
            let place = format!("{}, line {}", path.display(), line + 1);
            match key {
                "" => anyhow!("{place}: {}", plain(error.message())),
                key => anyhow!("{place}, `{key}`: {}", problem(error.message(), key, value)),
            }
        })?;
        Ok(SettingsFile {
            path: path.to_owned(),
            text,
            flags,
        })
    }

    /// Returns `FILE, line N` of a key that stands in the file.
    pub fn place(&self, key: &str) -> Option<String> {
        let line = self.text.lines().position(|line| key_and_value(line).0 == key)?;
        Some(format!("{}, line {}", self.path.display(), line + 1))
    }
}

/// The two sides of a line such as `listen = "127.0.0.1:8080"`; the key of a line without `=` is empty.
fn key_and_value(line: &str) -> (&str, &str) {
    line.split_once('=')
        .map_or(("", ""), |(key, value)| (key.trim(), value.trim()))
}

/// The settings of the edge alone, or all others.
fn known(edge: bool) -> clap::Command {
    let all = Flags::augment_args(clap::Command::new("serve"));
    let of_edge = super::gateway::Flags::augment_args(clap::Command::new("edge"));
    let is_of_edge = |id: &clap::Id| of_edge.get_arguments().any(|arg| arg.get_id() == id);
    let mut some = clap::Command::new("some");
    for arg in all.get_arguments().filter(|arg| is_of_edge(arg.get_id()) == edge) {
        some = some.arg(arg.clone());
    }
    some
}

/// What is wrong, from what the parser says, in words that name what the key takes.
fn problem(message: &str, key: &str, value: &str) -> String {
    let (top, edge) = (known(false), known(true));
    let named = |command: &clap::Command| command.get_arguments().any(|arg| arg.get_id() == key);
    if message.starts_with("unknown field") {
        if named(&edge) {
            return "belongs under [edge], at the end of the file".to_owned();
        }
        if named(&top) {
            return "belongs at the beginning of the file, before the first table such as [edge]".to_owned();
        }
        let ids = top.get_arguments().chain(edge.get_arguments());
        let ids: Vec<&str> = ids.map(|arg| arg.get_id().as_str()).collect();
        let meant = did_you_mean(key, ids);
        return format!("there is no such setting{meant}; `rollcall serve --help` lists them");
    }
    let takes = takes(&top, key).or_else(|| takes(&edge, key)).unwrap_or_default();
    if let Some(found) = message.strip_prefix("invalid type: ") {
        let (found, wanted) = (
            found.split(' ').next().unwrap_or_default(),
            message.rsplit_once("expected "),
        );
        let found = match found {
            "string" => "a text in quotes",
            "integer" => "a whole number",
            "floating" => "a number with a fraction",
            "boolean" => "true or false",
            "sequence" | "array" => "a list",
            _ => "a value of another kind",
        };
        let wanted = match wanted.map_or("", |(_, wanted)| wanted) {
            number if number.starts_with(['u', 'i']) && number.len() <= 5 => "a whole number without quotes",
            text if text.contains("string") || text.contains("path") || text.contains("variant") => "a text in quotes",
            "a boolean" => "true or false without quotes",
            "a sequence" => "a list such as [\"one\", \"two\"]",
            _ => "another kind of value",
        };
        return format!("{found} stands where {wanted} belongs{takes}");
    }
    if message.starts_with("invalid value: integer") {
        return format!("the number is negative or too large{takes}");
    }
    let is_bare = !value.starts_with(['"', '\'', '[', '{']) && value.parse::<f64>().is_err();
    if is_bare && !matches!(value, "true" | "false") && (named(&top) || named(&edge)) {
        return match value {
            "" => format!("there is no value after the ={takes}"),
            _ => format!("a text needs quotes around it: {key} = \"…\"{takes}"),
        };
    }
    plain(message)
}

/// Returns what a setting takes, as its help says, with a semicolon in front.
fn takes(command: &clap::Command, key: &str) -> Option<String> {
    let arg = command.get_arguments().find(|arg| arg.get_id() == key)?;
    Some(format!("; {key} is: {}", arg.get_help()?))
}

/// A message of the parser in one line.
fn plain(message: &str) -> String {
    message.trim().replace('\n', ", ")
}
