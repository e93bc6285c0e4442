//! Policy documents as JSON (`docs/rules.md` section 4): read strictly, written in one fixed form.
//!
//! This file checks the shape: keys, JSON types, and where null is allowed. [`PolicyDocument::complete`] has the bounds
//! and the defaults, so that they exist once. Every error names the key.

use super::nearest::did_you_mean;
use super::unique_keys::UniqueKeys;
use crate::presence::policy::{
    InvalidPolicy, LoginMode, Outage, Platform, PlatformDocument, Policy, PolicyDocument, RULES, bounds,
};
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Write};

const KEYS: [&str; 8] = [
    "rules",
    "login",
    "exclusive",
    "instances",
    "kicked_max",
    "custom_keep_ms",
    "outage",
    "platforms",
];
const PLATFORM_KEYS: [&str; 8] = [
    "kind",
    "heartbeat_ms",
    "timeout_ms",
    "closed_ms",
    "exit_ms",
    "background_ms",
    "push",
    "away_ms",
];

/// The largest policy document, in bytes: a request's text, or what a file becomes.
pub const POLICY_BYTES_MAX: usize = 512 << 10;

/// Parses a policy document of a log and completes it with the defaults.
pub fn parse_policy(text: &str) -> Result<Policy, InvalidPolicy> {
    let value: Value = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    policy_document(&value)?.complete()
}

/// Parses a policy document that somebody wrote, as [`parse_policy`] does, but a key that is given twice is an error. In a
/// log, the last one counts: what is in a log does not change its meaning.
pub fn parse_written_policy(text: &str) -> Result<Policy, InvalidPolicy> {
    let UniqueKeys(value) = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    policy_document(&value)?.complete()
}

fn not_json(error: &serde_json::Error) -> InvalidPolicy {
    InvalidPolicy(match error.classify() {
        Category::Eof => format!("policy: the JSON ends too early, in line {}", error.line()),
        Category::Data => format!("policy: {error}"),
        _ => format!("policy: not JSON: {error}"),
    })
}

/// Reads the fields of a policy document. Unknown keys, at any level, are an error. Null is allowed only for
/// `exclusive` and `background_ms`. [`PolicyDocument::complete`] checks the bounds.
pub fn policy_document(value: &Value) -> Result<PolicyDocument, InvalidPolicy> {
    let mut document = PolicyDocument::default();
    for (key, value) in object("policy", value)? {
        match key.as_str() {
            "rules" => document.rules = Some(integer(key, value, RULES, RULES)?),
            "login" => document.login = Some(login(value)?),
            "exclusive" => document.exclusive = exclusive(value)?,
            "instances" => {
                let (least, most) = bounds::INSTANCES;
                for (kind, limit) in object(key, value)? {
                    let limit = integer(format_args!("instances.{kind}"), limit, least, most)?;
                    document.instances.insert(kind.clone(), limit);
                }
            }
            "kicked_max" => document.kicked_max = Some(integer(key, value, 0, bounds::KICKED_MAX)?),
            "custom_keep_ms" => document.custom_keep_ms = Some(span(key, value, 0)?),
            "outage" => {
                for (key, value) in object(key, value)? {
                    match key.as_str() {
                        "silence_ms" => document.silence_ms = Some(span("outage.silence_ms", value, 0)?),
                        "grace_ms" => document.grace_ms = Some(span("outage.grace_ms", value, 0)?),
                        _ => return unknown_key("outage", key, &["silence_ms", "grace_ms"]),
                    }
                }
            }
            "platforms" => {
                for (name, value) in object(key, value)? {
                    document.platforms.insert(name.clone(), platform(name, value)?);
                }
            }
            _ => return unknown_key("policy", key, &KEYS),
        }
    }
    Ok(document)
}

fn platform(name: &str, value: &Value) -> Result<PlatformDocument, InvalidPolicy> {
    struct At<'k>(&'k str, &'k str);
    // Formatted only if something is wrong with the value.
    impl Display for At<'_> {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            write!(f, "platforms.{}.{}", self.0, self.1)
        }
    }
    let mut document = PlatformDocument::default();
    for (key, value) in object(format_args!("platforms.{name}"), value)? {
        match key.as_str() {
            "kind" => document.kind = Some(string(At(name, key), value)?),
            "heartbeat_ms" => document.heartbeat_ms = Some(span(At(name, key), value, 0)?),
            "timeout_ms" => document.timeout_ms = Some(span(At(name, key), value, bounds::TIMEOUT_MS_MIN)?),
            "closed_ms" => document.closed_ms = Some(span(At(name, key), value, 0)?),
            "exit_ms" => document.exit_ms = Some(span(At(name, key), value, 0)?),
            "background_ms" => {
                document.background_ms = Some(match value {
                    Value::Null => None,
                    value => Some(span(At(name, key), value, bounds::BACKGROUND_MS_MIN)?),
                });
            }
            "push" => match value {
                Value::Bool(push) => document.push = Some(*push),
                other => return mistyped(At(name, key), "true or false", other),
            },
            "away_ms" => document.away_ms = Some(span(At(name, key), value, 0)?),
            _ => return unknown_key(&format!("platforms.{name}"), key, &PLATFORM_KEYS),
        }
    }
    Ok(document)
}

fn login(value: &Value) -> Result<LoginMode, InvalidPolicy> {
    LoginMode::ALL
        .into_iter()
        .find(|mode| value.as_str() == Some(mode.name()))
        .map_or_else(
            || {
                let names = LoginMode::ALL.map(LoginMode::name).join(", ");
                mistyped("login", &format!("one of {names}"), value)
            },
            Ok,
        )
}

fn exclusive(value: &Value) -> Result<Option<Vec<Vec<String>>>, InvalidPolicy> {
    const SHAPE: &str = "null or an array of arrays of strings";
    let groups = match value {
        Value::Null => return Ok(None),
        Value::Array(groups) => groups,
        other => return mistyped("exclusive", SHAPE, other),
    };
    let group = |value: &Value| match value {
        Value::Array(kinds) => kinds
            .iter()
            .map(|kind| string("each kind in exclusive", kind))
            .collect(),
        other => mistyped("each group in exclusive", "an array of strings", other),
    };
    groups.iter().map(group).collect::<Result<_, _>>().map(Some)
}

fn object(key: impl Display, value: &Value) -> Result<&Map<String, Value>, InvalidPolicy> {
    match value {
        Value::Object(map) => Ok(map),
        other => mistyped(key, "an object", other),
    }
}

fn string(key: impl Display, value: &Value) -> Result<String, InvalidPolicy> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => mistyped(key, "a string", other),
    }
}

fn span(key: impl Display, value: &Value, least: u64) -> Result<u64, InvalidPolicy> {
    integer(key, value, least, bounds::MS_MAX)
}

/// Returns a non-negative integer of any size. The bounds are only for the error text, since `complete` checks them. A
/// number with a fraction or an exponent, such as `1.0`, is not accepted.
fn integer(key: impl Display, value: &Value, least: u64, most: u64) -> Result<u64, InvalidPolicy> {
    match value.as_u64() {
        Some(number) => Ok(number),
        None => mistyped(key, &format!("an integer, {least} to {most}"), value),
    }
}

fn mistyped<T>(key: impl Display, wanted: &str, found: &Value) -> Result<T, InvalidPolicy> {
    let found = match found {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    };
    let key = match key.to_string() {
        key if key == "policy" => "policy: it".to_owned(),
        key => format!("policy: {key}"),
    };
    Err(InvalidPolicy(format!("{key} must be {wanted}, not {found}")))
}

fn unknown_key<T>(within: &str, key: &str, known: &[&str]) -> Result<T, InvalidPolicy> {
    let within = if within == "policy" {
        ""
    } else {
        &format!(" in {within}")
    };
    let meant = match key {
        "policy" | "since" if within.is_empty() => {
            "; this is an answer of `rollcall policy get` or GET /v1/policy: the document is what it has as `policy`"
                .to_owned()
        }
        _ => did_you_mean(key, known.iter().copied()),
    };
    Err(InvalidPolicy(format!("policy: unknown key {key:?}{within}{meant}")))
}

/// Returns the completed policy as compact JSON, with the keys in the order of section 4 and the names in byte order.
/// Parsing it returns the same policy.
pub fn policy_json(policy: &Policy) -> String {
    let mut json = String::with_capacity(2_048);
    write_policy(policy, &mut json).expect("writing to a string does not fail");
    json
}

/// Parses the output of [`policy_json`], several times as fast as [`parse_policy`]: nothing is missing in it, and every
/// bound was checked before it was written. `None` for any other text.
pub fn written_policy(text: &str) -> Option<Policy> {
    #[derive(Deserialize)]
    struct Written {
        login: String,
        exclusive: Option<Vec<Vec<String>>>,
        instances: BTreeMap<String, u64>,
        kicked_max: u64,
        custom_keep_ms: u64,
        outage: WrittenOutage,
        platforms: BTreeMap<String, WrittenPlatform>,
    }
    #[derive(Deserialize)]
    struct WrittenOutage {
        silence_ms: u64,
        grace_ms: u64,
    }
    #[derive(Deserialize)]
    struct WrittenPlatform {
        kind: String,
        heartbeat_ms: u64,
        timeout_ms: u64,
        closed_ms: u64,
        exit_ms: u64,
        background_ms: Option<u64>,
        push: bool,
        away_ms: u64,
    }
    let written: Written = serde_json::from_str(text).ok()?;
    let platform = |(name, written): (String, WrittenPlatform)| {
        let platform = Platform {
            kind: written.kind,
            heartbeat_ms: written.heartbeat_ms,
            timeout_ms: written.timeout_ms,
            closed_ms: written.closed_ms,
            exit_ms: written.exit_ms,
            background_ms: written.background_ms,
            push: written.push,
            away_ms: written.away_ms,
        };
        (name, platform)
    };
    Some(Policy {
        login: LoginMode::ALL.into_iter().find(|mode| mode.name() == written.login)?,
        exclusive: written.exclusive,
        instances: written.instances,
        kicked_max: written.kicked_max,
        custom_keep_ms: written.custom_keep_ms,
        outage: Outage {
            silence_ms: written.outage.silence_ms,
            grace_ms: written.outage.grace_ms,
        },
        platforms: written.platforms.into_iter().map(platform).collect(),
    })
}

fn write_policy(policy: &Policy, json: &mut String) -> std::fmt::Result {
    write!(
        json,
        r#"{{"rules":{RULES},"login":"{}","exclusive":"#,
        policy.login.name()
    )?;
    match &policy.exclusive {
        None => json.push_str("null"),
        Some(groups) => list(json, '[', groups, ']', |json, group| {
            list(json, '[', group, ']', |json, kind| write!(json, "{}", quoted(kind)))
        })?,
    }
    json.push_str(r#","instances":"#);
    list(json, '{', &policy.instances, '}', |json, (kind, limit)| {
        write!(json, "{}:{limit}", quoted(kind))
    })?;
    write!(json, r#","kicked_max":{}"#, policy.kicked_max)?;
    write!(json, r#","custom_keep_ms":{}"#, policy.custom_keep_ms)?;
    write!(
        json,
        r#","outage":{{"silence_ms":{},"grace_ms":{}}},"platforms":"#,
        policy.outage.silence_ms, policy.outage.grace_ms
    )?;
    list(json, '{', &policy.platforms, '}', |json, (name, platform)| {
        write!(json, r#"{}:{{"kind":{}"#, quoted(name), quoted(&platform.kind))?;
        write!(
            json,
            r#","heartbeat_ms":{},"timeout_ms":{}"#,
            platform.heartbeat_ms, platform.timeout_ms
        )?;
        write!(
            json,
            r#","closed_ms":{},"exit_ms":{},"background_ms":"#,
            platform.closed_ms, platform.exit_ms
        )?;
        match platform.background_ms {
            None => json.push_str("null"),
            Some(background_ms) => write!(json, "{background_ms}")?,
        }
        write!(json, r#","push":{},"away_ms":{}}}"#, platform.push, platform.away_ms)
    })?;
    json.push('}');
    Ok(())
}

fn list<T>(
    json: &mut String,
    open: char,
    items: impl IntoIterator<Item = T>,
    close: char,
    mut item: impl FnMut(&mut String, T) -> std::fmt::Result,
) -> std::fmt::Result {
    json.push(open);
    for (i, each) in items.into_iter().enumerate() {
        if i > 0 {
            json.push(',');
        }
        item(json, each)?;
    }
    json.push(close);
    Ok(())
}

fn quoted(text: &str) -> Value {
    Value::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::event::bounds::PLATFORM_BYTES;

    fn refused(text: &str) -> String {
        parse_policy(text).expect_err(text).0
    }

    #[test]
    fn an_empty_document_is_the_default_policy() {
        assert_eq!(parse_policy("{}"), Ok(Policy::default()));
        assert_eq!(parse_policy(" {\"rules\": 1}\n"), Ok(Policy::default()));
    }

    #[test]
    fn the_completed_default_is_written_in_the_order_of_the_rules() {
        let json = policy_json(&Policy::default());
        let start = concat!(
            r#"{"rules":1,"login":"single","exclusive":null,"#,
            r#""instances":{"android":1,"ipad":1,"iphone":1,"linux":1,"mac":1,"web":1,"windows":1},"#,
            r#""kicked_max":16,"custom_keep_ms":0,"outage":{"silence_ms":0,"grace_ms":0},"platforms":{"#,
            r#""android":{"kind":"android","heartbeat_ms":120000,"timeout_ms":400000,"closed_ms":0,"exit_ms":0,"#,
            r#""background_ms":null,"push":true,"away_ms":604800000},"ipad":"#
        );
        assert!(json.starts_with(start), "{json}");
        assert!(json.contains(
            r#""mini_program":{"kind":"web","heartbeat_ms":20000,"timeout_ms":60000,"closed_ms":0,"exit_ms":5000,"background_ms":30000,"push":false,"away_ms":600000}"#
        ));
    }

    #[test]
    fn what_is_written_reads_as_the_same_policy() {
        for text in [
            "{}",
            r#"{"exclusive":[]}"#,
            r#"{"exclusive":[[],["a\"b","web"]],"login":"triple","instances":{"tv":3,"web":32},"kicked_max":0}"#,
            r#"{"outage":{"silence_ms":2000,"grace_ms":5},"platforms":{"tv \\ é":{"timeout_ms":10,"push":true}}}"#,
            r#"{"platforms":{"mini_program":{"background_ms":null},"web":{"background_ms":1,"kind":"x"}}}"#,
        ] {
            let policy = parse_policy(text).unwrap();
            let written = policy_json(&policy);
            assert_eq!(written_policy(&written).as_ref(), Some(&policy), "{text}");
            assert_eq!(parse_policy(&written), Ok(policy), "{text}");
        }
    }

    #[test]
    fn what_is_not_written_whole_is_not_taken_for_it() {
        let whole = policy_json(&Policy::default());
        for text in [
            "",
            "{}",
            "null",
            &whole[..whole.len() - 1],
            &whole.replace(r#""login":"single""#, r#""login":"some""#),
            &whole.replacen(r#""away_ms":604800000"#, r#""away_ms":-1"#, 1),
            &whole.replacen(r#""push":true,"#, "", 1),
        ] {
            assert_eq!(written_policy(text), None, "{text}");
        }
    }

    #[test]
    fn given_fields_replace_those_of_a_default_platform_and_a_new_one_gets_the_rest() {
        let policy =
            parse_policy(r#"{"platforms":{"web":{"away_ms":7},"tv":{"timeout_ms":100,"push":true}}}"#).unwrap();
        assert_eq!(policy.platforms["web"].away_ms, 7);
        assert_eq!(policy.platforms["web"].timeout_ms, 60_000);
        assert_eq!(policy.platforms["tv"].kind, "tv");
        assert_eq!(policy.platforms["tv"].heartbeat_ms, 33);
        assert_eq!(policy.platforms["tv"].away_ms, 604_800_000);
        assert_eq!(policy.platforms["mini_program"].background_ms, Some(30_000));
    }

    #[test]
    fn null_takes_the_background_limit_away_and_is_allowed_for_exclusive_only_besides() {
        let policy = parse_policy(r#"{"exclusive":null,"platforms":{"mini_program":{"background_ms":null}}}"#).unwrap();
        assert_eq!(policy.exclusive, None);
        assert_eq!(policy.platforms["mini_program"].background_ms, None);
        for key in [
            "rules",
            "login",
            "instances",
            "kicked_max",
            "custom_keep_ms",
            "outage",
            "platforms",
        ] {
            let error = refused(&format!(r#"{{"{key}":null}}"#));
            assert!(error.contains(key) && error.ends_with("not null"), "{error}");
        }
        for key in [
            "kind",
            "heartbeat_ms",
            "timeout_ms",
            "closed_ms",
            "exit_ms",
            "push",
            "away_ms",
        ] {
            let error = refused(&format!(r#"{{"platforms":{{"web":{{"{key}":null}}}}}}"#));
            assert!(error.contains(&format!("platforms.web.{key} must be")), "{error}");
        }
        assert!(refused(r#"{"platforms":{"web":null}}"#).contains("platforms.web must be an object"));
        assert!(refused(r#"{"outage":{"grace_ms":null}}"#).contains("outage.grace_ms"));
        assert!(refused(r#"{"instances":{"web":null}}"#).contains("instances.web"));
        assert!(refused(r#"{"exclusive":[null]}"#).contains("exclusive"));
        assert!(refused(r#"{"exclusive":[["web",null]]}"#).contains("exclusive"));
    }

    #[test]
    fn unknown_keys_at_any_level_are_an_error() {
        let check = |text: &str, begins: &str| assert!(refused(text).starts_with(begins), "{}", refused(text));
        check(r#"{"Rules":1}"#, r#"policy: unknown key "Rules""#);
        check(
            r#"{"policy":{"login":"multi"},"since":[]}"#,
            r#"policy: unknown key "policy"; this is an answer of"#,
        );
        check(
            r#"{"outage":{"silence":1}}"#,
            r#"policy: unknown key "silence" in outage"#,
        );
        check(
            r#"{"platforms":{"web":{"timeout":1}}}"#,
            r#"policy: unknown key "timeout" in platforms.web"#,
        );
    }

    #[test]
    fn only_integers_are_integers_and_the_error_tells_key_and_bounds() {
        for number in ["1.0", "1e3", "true", "\"1\"", "-1", "18446744073709551616", "[]", "{}"] {
            let error = refused(&format!(r#"{{"platforms":{{"web":{{"timeout_ms":{number}}}}}}}"#));
            let start = "policy: platforms.web.timeout_ms must be an integer, 1 to 315360000000, not ";
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn every_bound_holds_at_both_ends() {
        let with = |key: &str, number: u64| match key.split_once('.') {
            None => format!(r#"{{"{key}":{number}}}"#),
            Some(("platforms", key)) => format!(r#"{{"platforms":{{"web":{{"{key}":{number}}}}}}}"#),
            Some((outer, key)) => format!(r#"{{"{outer}":{{"{key}":{number}}}}}"#),
        };
        for (key, least, most) in [
            ("rules", 1, 1),
            ("kicked_max", 0, 64),
            ("custom_keep_ms", 0, bounds::MS_MAX),
            ("instances.web", 1, 32),
            ("outage.silence_ms", 2_000, bounds::MS_MAX),
            ("outage.grace_ms", 0, bounds::MS_MAX),
            ("platforms.heartbeat_ms", 0, bounds::MS_MAX),
            ("platforms.timeout_ms", 1, bounds::MS_MAX),
            ("platforms.closed_ms", 0, bounds::MS_MAX),
            ("platforms.exit_ms", 0, bounds::MS_MAX),
            ("platforms.background_ms", 1, bounds::MS_MAX),
            ("platforms.away_ms", 0, bounds::MS_MAX),
        ] {
            parse_policy(&with(key, least)).unwrap();
            parse_policy(&with(key, most)).unwrap();
            let last = key.rsplit('.').next().unwrap();
            assert!(refused(&with(key, most + 1)).contains(last), "{key}");
            if least > 0 {
                assert!(refused(&with(key, least - 1)).contains(last), "{key}");
            }
        }
        parse_policy(r#"{"outage":{"silence_ms":0}}"#).unwrap();
    }

    #[test]
    fn names_of_platforms_and_their_number_are_bounded() {
        let named = |name: &str| format!(r#"{{"platforms":{{"{name}":{{"timeout_ms":1,"push":false}}}}}}"#);
        parse_policy(&named(&"x".repeat(PLATFORM_BYTES.1))).unwrap();
        refused(&named(&"x".repeat(PLATFORM_BYTES.1 + 1)));
        refused(&named(""));
        let many = |count: usize| {
            let platforms: Vec<_> = (0..count)
                .map(|i| format!(r#""p{i}":{{"timeout_ms":1,"push":false}}"#))
                .collect();
            format!(r#"{{"platforms":{{{}}}}}"#, platforms.join(","))
        };
        parse_policy(&many(bounds::PLATFORMS_MAX - 8)).unwrap();
        refused(&many(bounds::PLATFORMS_MAX - 7));
        assert!(refused(r#"{"platforms":{"tv":{"push":true}}}"#).contains("timeout_ms and push"));
    }

    #[test]
    fn what_is_no_json_object_is_refused_with_a_sentence() {
        assert!(refused("").starts_with("policy: "), "{}", refused(""));
        assert!(refused("{} {}").starts_with("policy: not JSON: "));
        assert_eq!(refused("[]"), "policy: it must be an object, not an array");
        assert!(refused(r#"{"login":"Single"}"#).contains("login must be one of single, dual, triple, multi"));
        assert!(refused(r#"{"platforms":{"web":{"push":1}}}"#).contains("platforms.web.push must be true or false"));
        assert!(refused(r#"{"platforms":{"web":{"kind":1}}}"#).contains("platforms.web.kind must be a string"));
    }
}
