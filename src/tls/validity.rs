//! From when until when a certificate is valid: the one thing about it that rustls does not say.
//!
//! Only its own walk over the fields before it, and no crate for X.509: that would be ten more crates for two times. rustls has
//! parsed the certificate already, and what cannot be read here costs a metric.

use chrono::{DateTime, NaiveDateTime, SecondsFormat};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The longest time before its end at which a certificate ends soon.
const SOON_S: i64 = 14 * 86_400;

/// From when until when a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub from_s: i64,
    pub until_s: i64,
}

impl Validity {
    /// Whether it should have been renewed by now: a fifth of its time is left, or two weeks if that is less. Issuers that
    /// renew by themselves do so when a third is left.
    pub fn ends_soon(self, now_s: i64) -> bool {
        let whole_s = self.until_s.saturating_sub(self.from_s).max(0);
        self.until_s.saturating_sub(now_s) <= SOON_S.min(whole_s / 5)
    }

    /// Until when, for people.
    pub fn until(self) -> String {
        let until = DateTime::from_timestamp(self.until_s, 0);
        until.map_or_else(String::new, |until| until.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

/// Splits DER into the first element's tag and content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut length = usize::from(*first);
    if length >= 0x80 {
        let (digits, after) = rest.split_at_checked(length & 0x7f)?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    Some((*tag, content, after))
}

fn sequence(bytes: &[u8]) -> Option<&[u8]> {
    element(bytes)
        .filter(|(tag, ..)| *tag == SEQUENCE)
        .map(|(_, content, _)| content)
}

/// A time, and what follows it.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    let text = std::str::from_utf8(content).ok()?;
    let text = match tag {
        // Two digits of the year: those from 50 on are of the century before.
        UTC_TIME => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?;
    Some((time.and_utc().timestamp(), rest))
}

/// Reads the validity of a certificate in DER (RFC 5280, section 4.1). `None` if that is not where it should be.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let mut fields = sequence(sequence(certificate)?)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (from_s, rest) = time(sequence(fields)?)?;
    let (until_s, _) = time(rest)?;
    Some(Validity { from_s, until_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        parameters.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let key = rcgen::KeyPair::generate().expect("made");
        parameters.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn the_times_of_a_certificate_are_read_in_both_forms_and_never_beyond_its_end() {
        // From 2050 on the year has four digits.
        for (from, until, text) in [
            ((2026, 1, 31), (2026, 5, 1), "2026-05-01T00:00:00Z"),
            ((1975, 1, 1), (2049, 12, 31), "2049-12-31T00:00:00Z"),
            ((2026, 1, 1), (2050, 1, 1), "2050-01-01T00:00:00Z"),
        ] {
            let der = made(from, until);
            let read = validity(&der).expect("it can be read");
            assert_eq!(read.until(), text);
            assert!(read.from_s < read.until_s);
            for length in 0..der.len() {
                assert_eq!(validity(&der[..length]), None, "cut at {length}");
            }
        }
        assert_eq!(validity(&[SEQUENCE, 0xff, 0xff]), None);
    }

    #[test]
    fn it_ends_soon_when_a_fifth_is_left_and_at_most_two_weeks_before() {
        const DAY: i64 = 86_400;
        let of = |days| Validity {
            from_s: 0,
            until_s: days * DAY,
        };
        assert!(!of(90).ends_soon(75 * DAY) && of(90).ends_soon(76 * DAY));
        assert!(!of(365).ends_soon(350 * DAY) && of(365).ends_soon(351 * DAY));
        assert!(!of(1).ends_soon(DAY * 79 / 100) && of(1).ends_soon(DAY * 4 / 5));
        assert!(of(1).ends_soon(2 * DAY));
    }
}
