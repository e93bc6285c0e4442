//! Reads a time as people and programs write it.

use crate::presence::LogTime;
use chrono::DateTime;

/// A text that is no time; says what was expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a time: expected RFC 3339 (2026-01-31T15:00:00Z), milliseconds since 1970 (1769871600000), or a span before \
     now (-90s, -15m, -3h, -2d)"
)]
pub struct InvalidTime(String);

/// Returns the time that `text` names: RFC 3339, milliseconds since 1970, or a span before `now_ms` (`-3h`).
pub fn parse(text: &str, now_ms: u64) -> Result<LogTime, InvalidTime> {
    let invalid = || InvalidTime(text.to_owned());
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(LogTime).map_err(|_| invalid());
    }
    if let Some(span) = text.strip_prefix('-') {
        let digits = span.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = span.split_at(digits);
        let ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(invalid()),
        };
        let span = number.parse::<u64>().ok().and_then(|number| number.checked_mul(ms));
        return Ok(LogTime(now_ms.saturating_sub(span.ok_or_else(invalid)?)));
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| invalid())?;
    u64::try_from(time.timestamp_millis())
        .map(LogTime)
        .map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_time_is_read_in_each_of_its_three_forms() {
        let now = 1_000_000_000;
        let at = |text| parse(text, now).map(|time| time.0);
        assert_eq!(at("0"), Ok(0));
        assert_eq!(at("1769871600000"), Ok(1_769_871_600_000));
        assert_eq!(at("2026-01-31T15:00:00Z"), Ok(1_769_871_600_000));
        assert_eq!(at("2026-01-31T16:00:00.250+01:00"), Ok(1_769_871_600_250));
        assert_eq!(at("-250ms"), Ok(now - 250));
        assert_eq!(at("-90s"), Ok(now - 90_000));
        assert_eq!(at("-3h"), Ok(now - 3 * 3_600_000));
        assert_eq!(at("-20000d"), Ok(0));
        for wrong in [
            "",
            "-",
            "-3",
            "-h",
            "-3w",
            "yesterday",
            "2026-01-31",
            "1960-01-01T00:00:00Z",
            "99999999999999999999",
            "-99999999999999999999d",
        ] {
            let error = at(wrong).expect_err(wrong).to_string();
            assert!(
                error.contains("RFC 3339") && error.contains(&format!("{wrong:?}")),
                "{error}"
            );
        }
    }
}
