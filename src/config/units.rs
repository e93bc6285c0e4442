//! Spans of time and sizes, as settings take them: a number with a unit (`30s`, `10m`, `64MiB`), or a plain number in the
//! unit that the setting is named after.
//!
//! Own code and no crate: units that people confuse (months, MB) are refused, and an error says what is taken.

use super::Invalid;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

const SPANS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A span of time in milliseconds. A plain number counts `PLAIN_MS` each; with 0 a unit is required.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span<const PLAIN_MS: u64>(pub u64);

/// A size in bytes. A plain number counts `PLAIN_BYTES` each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size<const PLAIN_BYTES: u64>(pub u64);

pub type Milliseconds = Span<1>;
pub type Seconds = Span<1_000>;
pub type Hours = Span<3_600_000>;
pub type Bytes = Size<1>;
pub type Mebibytes = Size<{ 1 << 20 }>;

/// Why a text is no value; what follows the value in a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoValue(String);

impl fmt::Display for NoValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoValue {}

/// The names of the units, and an example.
fn known(units: &[(&str, u64)]) -> String {
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    let (last, others) = names.split_last().expect("there are units");
    format!("{} or {last}", others.join(", "))
}

fn parse(text: &str, units: &[(&str, u64)], plain: u64, example: &str) -> Result<u64, NoValue> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let factor = match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => Some(*factor),
        None if unit.is_empty() && plain > 0 => Some(plain),
        None => None,
    };
    let (Some(factor), false) = (factor, number.is_empty()) else {
        let plain = if plain > 0 {
            "is not a whole number, nor"
        } else {
            "is not"
        };
        return Err(NoValue(format!(
            "{plain} a whole number with one of the units {}, such as {example}",
            known(units)
        )));
    };
    let value = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    value.ok_or_else(|| NoValue("is too large".to_owned()))
}

/// A value in the greatest unit that leaves no fraction.
fn shown(value: u64, units: &[(&str, u64)]) -> String {
    let whole = units
        .iter()
        .rev()
        .find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    match whole {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => format!("{value}{}", units[0].0),
    }
}

/// The value, or the default, if it is within bounds. `plain` is how much a plain number counts.
fn within(
    name: &'static str,
    value: u64,
    (least, most): (u64, u64),
    units: &[(&str, u64)],
    plain: u64,
) -> anyhow::Result<u64> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    let is_plain = |number: u64| plain > 0 && number.is_multiple_of(plain);
    let problem = match [least, most, value].into_iter().all(is_plain) {
        true => format!("must be {} to {}, not {}", least / plain, most / plain, value / plain),
        false => format!(
            "must be {} to {}, not {}",
            shown(least, units),
            shown(most, units),
            shown(value, units)
        ),
    };
    anyhow::bail!(Invalid::new(name, problem))
}

/// What reads a value of the settings file.
struct InFile<T>(PhantomData<T>);

impl<'de, T: FromStr<Err = NoValue>> Visitor<'de> for InFile<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or a number with a unit as a text")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    /// A value of the file is not shown.
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|error| E::custom(format!("the value {error}")))
    }
}

impl<const PLAIN_MS: u64> Span<PLAIN_MS> {
    /// Milliseconds of a setting, within bounds in milliseconds.
    pub fn within(
        name: &'static str,
        value: Option<Self>,
        default_ms: u64,
        least_ms: u64,
        most_ms: u64,
    ) -> anyhow::Result<u64> {
        let ms = value.map_or(default_ms, |Span(ms)| ms);
        within(name, ms, (least_ms, most_ms), SPANS, PLAIN_MS)
    }
}

impl<const PLAIN_BYTES: u64> Size<PLAIN_BYTES> {
    /// Bytes of a setting, within bounds in bytes.
    pub fn within(name: &'static str, value: Option<Self>, default: u64, least: u64, most: u64) -> anyhow::Result<u64> {
        let bytes = value.map_or(default, |Size(bytes)| bytes);
        within(name, bytes, (least, most), SIZES, PLAIN_BYTES)
    }
}

/// A plain number if it can be one, as `--help` shows a default.
impl<const PLAIN_MS: u64> fmt::Display for Span<PLAIN_MS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_rem(PLAIN_MS) {
            Some(0) => write!(f, "{}", self.0 / PLAIN_MS),
            _ => f.write_str(&shown(self.0, SPANS)),
        }
    }
}

/// A plain number if it can be one, as `--help` shows a default.
impl<const PLAIN_BYTES: u64> fmt::Display for Size<PLAIN_BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_rem(PLAIN_BYTES) {
            Some(0) => write!(f, "{}", self.0 / PLAIN_BYTES),
            _ => f.write_str(&shown(self.0, SIZES)),
        }
    }
}

impl<const PLAIN_MS: u64> FromStr for Span<PLAIN_MS> {
    type Err = NoValue;

    fn from_str(text: &str) -> Result<Self, NoValue> {
        parse(text, SPANS, PLAIN_MS, "30s").map(Span)
    }
}

impl<const PLAIN_BYTES: u64> FromStr for Size<PLAIN_BYTES> {
    type Err = NoValue;

    fn from_str(text: &str) -> Result<Self, NoValue> {
        parse(text, SIZES, PLAIN_BYTES, "64MiB").map(Size)
    }
}

impl<'de, const PLAIN_MS: u64> Deserialize<'de> for Span<PLAIN_MS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InFile(PhantomData))
    }
}

impl<'de, const PLAIN_BYTES: u64> Deserialize<'de> for Size<PLAIN_BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InFile(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_a_unit_or_that_of_the_setting() {
        let hours = |text: &str| text.parse::<Hours>().map(|Span(ms)| ms);
        assert_eq!(hours("720"), Ok(720 * 3_600_000));
        assert_eq!(hours("30d"), hours("720"));
        assert_eq!(hours("250ms"), Ok(250));
        assert_eq!(hours(" 10 m "), Ok(600_000));
        let mib = |text: &str| text.parse::<Mebibytes>().map(|Size(bytes)| bytes);
        assert_eq!(mib("64"), mib("64MiB"));
        assert_eq!(mib("1GiB"), Ok(1 << 30));
        assert_eq!("65536".parse::<Bytes>(), "64KiB".parse());
        assert_eq!("60s".parse::<Span<0>>(), Ok(Span(60_000)));
    }

    #[test]
    fn a_settings_file_has_numbers_or_texts() {
        #[derive(serde::Deserialize)]
        struct File {
            number: Hours,
            text: Hours,
        }
        let read = toml::from_str::<File>("number = 720\ntext = \"30d\"").expect("both are spans");
        assert_eq!(read.number, read.text);
        for wrong in ["-1", "1.5", "true", "\"ten\""] {
            assert!(
                toml::from_str::<File>(&format!("number = {wrong}\ntext = 1")).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_no_value_is_refused_in_a_sentence_that_names_the_units() {
        for text in ["", "s", "-1", "1.5h", "1w", "1M", "1 s s", "+1"] {
            let error = text.parse::<Milliseconds>().expect_err(text).to_string();
            let expected =
                "is not a whole number, nor a whole number with one of the units ms, s, m, h or d, such as 30s";
            assert_eq!(error, expected, "{text:?}");
        }
        for text in ["64MB", "64M", "64mib"] {
            let error = text.parse::<Mebibytes>().expect_err(text).to_string();
            assert!(error.contains("B, KiB, MiB or GiB, such as 64MiB"), "{text:?}: {error}");
        }
        assert!("60".parse::<Span<0>>().is_err(), "it has no unit");
        for text in ["18446744073709551616", "18446744073709551615h"] {
            let error = text.parse::<Hours>().expect_err(text).to_string();
            assert_eq!(error, "is too large");
        }
    }

    #[test]
    fn bounds_are_in_the_unit_of_the_setting_or_in_the_greatest_that_fits() {
        let hours = |text: &str| {
            let value = text.parse::<Hours>().expect("a span");
            let bounds = Hours::within("retention_hours", Some(value), 0, 3_600_000, 876_000 * 3_600_000);
            bounds.map_err(|error| error.to_string())
        };
        assert_eq!(hours("1h"), Ok(3_600_000));
        assert_eq!(
            hours("0"),
            Err("--retention-hours must be 1 to 876000, not 0".to_owned())
        );
        assert_eq!(
            hours("30m"),
            Err("--retention-hours must be 1h to 36500d, not 30m".to_owned())
        );
    }
}
