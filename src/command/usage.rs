//! Formats errors for the command line: one line that names the input that is wrong, which is a flag, an environment
//! variable, or a line of the settings file.

use crate::config::Invalid;
use crate::schema::nearest::nearest;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use std::error::Error;
use std::ffi::OsString;
use std::num::{IntErrorKind, ParseIntError};

/// Flag names that people try, and the flag that they probably mean.
const SYNONYMS: [(&str, &str); 18] = [
    ("address", "listen"),
    ("bind", "listen"),
    ("host", "listen"),
    ("http", "listen"),
    ("port", "listen"),
    ("dir", "data"),
    ("data-dir", "data"),
    ("directory", "data"),
    ("path", "data"),
    ("bootstrap", "kafka"),
    ("bootstrap-server", "kafka"),
    ("brokers", "kafka"),
    ("token", "token-file"),
    ("tokens", "token-file"),
    ("prefix", "topic-prefix"),
    ("schema-registry", "registry"),
    ("server", "engine"),
    ("url", "engine"),
];

/// Returns an error with its causes. A cause whose text is already included is not repeated.
pub fn explain(error: &anyhow::Error, command: &Command, matches: &ArgMatches) -> String {
    if let Some(invalid) = error.downcast_ref::<Invalid>() {
        let (command, matches) = innermost(command, matches);
        return format!("{} {}", source(invalid, command, matches), invalid.problem);
    }
    let mut said = String::new();
    for cause in error.chain().map(|cause| without_number(&cause.to_string())) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}, because: {cause}");
        }
    }
    said
}

/// Removes the number of a system error: `No such file or directory (os error 2)`.
fn without_number(text: &str) -> String {
    match text.split_once(" (os error ") {
        Some((before, after)) => {
            let after = after.split_once(')').map_or("", |(_, after)| after);
            format!("{before}{}", without_number(after))
        }
        None => text.to_owned(),
    }
}

/// Returns the subcommand that was called, and its arguments.
fn innermost<'a>(mut command: &'a Command, mut matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches) {
    while let Some((name, inner)) = matches.subcommand()
        && let Some(found) = command.find_subcommand(name)
    {
        (command, matches) = (found, inner);
    }
    (command, matches)
}

/// Names the input that a setting's value came from.
fn source(invalid: &Invalid, command: &Command, matches: &ArgMatches) -> String {
    let arg = command.get_arguments().find(|arg| arg.get_id() == invalid.setting);
    let source = arg.and_then(|arg| matches.value_source(arg.get_id().as_str()));
    match (source, arg.and_then(variable), &invalid.line) {
        (Some(ValueSource::CommandLine), ..) => invalid.flag(),
        (Some(ValueSource::EnvVariable), Some(variable), _) => format!("{variable} ({})", invalid.flag()),
        (_, _, Some(line)) => format!("{line}: {}", invalid.setting),
        _ => invalid.flag(),
    }
}

fn variable(arg: &Arg) -> Option<String> {
    arg.get_env().map(|name| name.to_string_lossy().into_owned())
}

/// Returns what is wrong with a command line. None for what clap prints itself: help and versions.
pub fn refusal(error: &clap::Error, command: &Command, arguments: &[OsString]) -> Option<String> {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let command = called(command, &arguments);
    match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let named = text(error, ContextKind::InvalidArg)?;
            let arg = command.get_arguments().find(|arg| arg.to_string() == named)?;
            Some(format!("error: {}\n", value_refused(error, arg, &arguments)))
        }
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            None
        }
        ErrorKind::UnknownArgument => Some(format!("{}{}", error.render(), meant(error, command))),
        _ => Some(format!("{}{}", error.render(), notes(error, command, &arguments))),
    }
}

/// Returns the subcommand that the arguments name.
fn called<'c>(mut command: &'c Command, arguments: &[String]) -> &'c Command {
    for argument in arguments.iter().skip(1) {
        match command.find_subcommand(argument) {
            Some(found) => command = found,
            None => break,
        }
    }
    command
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        _ => None,
    }
}

/// Whether a flag is given on the command line.
fn is_typed(arg: &Arg, arguments: &[String]) -> bool {
    let Some(long) = arg.get_long() else { return true };
    let flag = format!("--{long}");
    arguments
        .iter()
        .any(|argument| *argument == flag || argument.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('=')))
}

/// Returns the environment variable that gave a flag its value.
fn variable_of(arg: &Arg, arguments: &[String]) -> Option<String> {
    let name = arg.get_env()?;
    (std::env::var_os(name).is_some() && !is_typed(arg, arguments)).then(|| name.to_string_lossy().into_owned())
}

fn value_refused(error: &clap::Error, arg: &Arg, arguments: &[String]) -> String {
    let flag = arg
        .get_long()
        .map_or_else(|| arg.to_string(), |long| format!("--{long}"));
    let input = match variable_of(arg, arguments) {
        Some(variable) => format!("{variable} ({flag})"),
        None => flag.clone(),
    };
    let value = match text(error, ContextKind::InvalidValue) {
        _ if arg.is_hide_env_values_set() => "the value (not shown)".to_owned(),
        Some(value) => format!("{value:?}"),
        None => "the value".to_owned(),
    };
    let takes = arg
        .get_help()
        .map_or(String::new(), |help| format!("; {flag} is: {help}"));
    if let Some(allowed) = text(error, ContextKind::ValidValue) {
        if allowed.is_empty() {
            return format!("{input}: the value is empty{takes}");
        }
        let meant = text(error, ContextKind::SuggestedValue);
        let meant = meant.map_or(String::new(), |meant| format!("; did you mean {meant:?}?"));
        return format!("{input}: {value} is not one of {allowed}{meant}");
    }
    let Some(cause) = error.source() else {
        return format!("{input}: {value} cannot be used{takes}");
    };
    if let Some(number) = cause.downcast_ref::<ParseIntError>() {
        let problem = match number.kind() {
            IntErrorKind::PosOverflow => "is too large",
            IntErrorKind::NegOverflow => "is too small",
            _ => "is not a whole number",
        };
        return format!("{input}: {value} {problem}{takes}");
    }
    let cause = cause.to_string();
    if let Some((_, range)) = cause.split_once(" is not in ") {
        // If the help names bounds, they are shown instead of clap's.
        return match takes.contains(" to ") {
            true => format!("{input}: {value} is out of bounds{takes}"),
            false => format!(
                "{input}: {value} is not in the range {}{takes}",
                range.replace("..=", " to ")
            ),
        };
    }
    let is_sentence = ["is ", "has ", "names ", "does ", "begins ", "must "]
        .iter()
        .any(|verb| cause.starts_with(verb));
    match is_sentence {
        true => format!("{input}: {value} {cause}"),
        false => format!("{input}: {value} cannot be used: {cause}{takes}"),
    }
}

/// Returns a tip with the flag that was probably meant, if clap gives none.
fn meant(error: &clap::Error, command: &Command) -> String {
    if error.get(ContextKind::SuggestedArg).is_some() {
        return String::new();
    }
    let typed = text(error, ContextKind::InvalidArg).unwrap_or_default();
    let Some(word) = typed.strip_prefix("--") else {
        return String::new();
    };
    let flag = |name: &str| command.get_arguments().find(|arg| arg.get_long() == Some(name));
    let known = SYNONYMS.iter().filter(|(_, name)| flag(name).is_some());
    let Some(synonym) = nearest(word, known.clone().map(|(word, _)| *word)) else {
        return String::new();
    };
    let name = known.clone().find(|(word, _)| *word == synonym).map(|(_, name)| *name);
    name.and_then(flag)
        .map_or(String::new(), |arg| format!("\n  tip: did you mean {arg}?\n"))
}

/// Returns notes for flags in the error that are set, or can be set, by the environment.
fn notes(error: &clap::Error, command: &Command, arguments: &[String]) -> String {
    let said = error.render().to_string();
    let said = said.split("\n\nUsage:").next().unwrap_or_default();
    let mut notes = String::new();
    for arg in command.get_arguments().filter(|arg| said.contains(&arg.to_string())) {
        if let Some(variable) = variable_of(arg, arguments) {
            notes += &format!("\n  note: {arg} is set by the environment variable {variable}\n");
        } else if error.kind() == ErrorKind::MissingRequiredArgument
            && let Some(variable) = variable(arg)
        {
            notes += &format!("\n  note: {arg} can also be set by the environment variable {variable}\n");
        }
    }
    notes
}
