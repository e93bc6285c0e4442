//! The partition of a user (`docs/rules.md` section 9), and the check that a record is in the right partition (section
//! 2.7).
//!
//! The partition is the one that Kafka's Java client computes for a key: murmur2, made positive, modulo the number of
//! partitions. A publisher with another partitioner would split users between partitions without an error, so records
//! are checked.

use super::Malformed;
use crate::presence::Partition;
use crate::presence::event::Event;

/// Returns the partition of a user among `partitions`, which must be at least 1.
pub fn partition_of(user: &str, partitions: u32) -> Partition {
    assert!(partitions > 0, "a topic has at least one partition");
    let positive = murmur2(user.as_bytes()) & 0x7fff_ffff;
    Partition(positive % partitions)
}

/// Checks that every user of the event, also in heartbeats, belongs to this partition.
pub fn check_partition(event: &Event<'_>, partition: Partition, partitions: u32) -> Result<(), Malformed> {
    let mut stray = None;
    event.for_each_user(|user| {
        if stray.is_none() {
            let home = partition_of(user, partitions);
            if home != partition {
                stray = Some((user, home));
            }
        }
    });
    match stray {
        None => Ok(()),
        Some((user, home)) => Err(Malformed::invalid(format!(
            "user {user:?} belongs to partition {home} of {partitions}, not to {partition}: is the publisher's \
             partitioner murmur2?"
        ))),
    }
}

/// Checks that the key of a record about a user is that user. Records about no single user may have any key, or none.
pub fn check_key(event: &Event<'_>, key: Option<&[u8]>) -> Result<(), Malformed> {
    match (event.user(), key) {
        (None, _) => Ok(()),
        (Some(user), Some(key)) if user.as_bytes() == key => Ok(()),
        (Some(user), Some(key)) => Err(Malformed::invalid(format!(
            "the record's key must be its user {user:?}, not {:?}{}",
            String::from_utf8_lossy(key),
            looks_like(key)
        ))),
        (Some(user), None) => Err(Malformed::invalid(format!(
            "the record's key must be its user {user:?}, but it has none"
        ))),
    }
}

/// Returns a hint on how a wrong key was probably written.
fn looks_like(key: &[u8]) -> &'static str {
    match key {
        [b'"', .., b'"'] => ": it looks like JSON text with its quotes; write the key with a string serializer",
        [b'{' | b'[', ..] => ": it looks like JSON; write the user alone, with a string serializer",
        [0, _, _, _, _, _, ..] => ": it looks like Avro framed for a registry; write the key with a string serializer",
        [0xc3, 0x01, ..] => ": it looks like Avro in single-object encoding; write the key with a string serializer",
        // An Avro string begins with twice its length.
        [length, text @ ..] if text.len() < 64 && usize::from(*length) == 2 * text.len() => {
            ": it looks like an Avro string; write the key with a string serializer"
        }
        _ => "",
    }
}

/// Returns MurmurHash2 with Kafka's seed, like `org.apache.kafka.common.utils.Utils.murmur2`; all arithmetic wraps.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    // The Java client hashes the length as a 32-bit int.
    let mut h = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::Conn;
    use crate::presence::Epoch;
    use crate::presence::event::{DeviceRef, HeartbeatEntry, Target};

    /// The values of Kafka's UtilsTest.testMurmur2.
    const OF_THE_JAVA_CLIENT: [(&str, i32); 6] = [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ];

    #[test]
    fn murmur2_is_that_of_the_java_client() {
        for (key, hash) in OF_THE_JAVA_CLIENT {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_is_made_positive_by_its_low_31_bits() {
        for (key, hash) in OF_THE_JAVA_CLIENT {
            let java = (hash & 0x7fff_ffff) % 6;
            assert_eq!(partition_of(key, 6), Partition(java as u32), "{key}");
        }
        assert_eq!(partition_of("anyone", 1), Partition(0));
    }

    #[test]
    fn an_event_or_a_beat_of_a_user_from_elsewhere_is_malformed() {
        // By the hashes above, "abc" belongs to partition 1 of 2 and "21" to partition 0.
        let kick = |user: &'static str| Event::Kick {
            user: user.into(),
            target: Target::All,
        };
        assert_eq!(check_partition(&kick("abc"), Partition(1), 2), Ok(()));
        let error = check_partition(&kick("21"), Partition(1), 2).unwrap_err().to_string();
        assert!(
            error.contains("\"21\" belongs to partition 0 of 2, not to 1"),
            "{error}"
        );

        let beat = |user: &'static str| HeartbeatEntry {
            who: DeviceRef {
                user: user.into(),
                platform: "web".into(),
                device: "d".into(),
            },
            conn: Conn(1),
        };
        let heartbeats = |beats| Event::Heartbeats {
            gateway: "g".into(),
            epoch: Epoch(1),
            beats,
        };
        assert_eq!(check_partition(&heartbeats(vec![beat("abc")]), Partition(1), 2), Ok(()));
        assert!(check_partition(&heartbeats(vec![beat("abc"), beat("21")]), Partition(1), 2).is_err());
        assert_eq!(check_partition(&Event::Tick, Partition(1), 2), Ok(()));
    }

    #[test]
    fn the_key_of_a_record_about_a_user_is_the_user() {
        let forget = Event::Forget { user: "abc".into() };
        assert_eq!(check_key(&forget, Some(b"abc")), Ok(()));
        assert!(check_key(&forget, Some(b"abd")).is_err());
        assert!(check_key(&forget, None).is_err());
        assert_eq!(check_key(&Event::Tick, None), Ok(()));
        assert_eq!(check_key(&Event::Tick, Some(b"lease")), Ok(()));
    }

    #[test]
    fn a_key_of_another_serializer_is_called_what_it_looks_like() {
        let forget = Event::Forget { user: "abc".into() };
        let error = |key: &[u8]| check_key(&forget, Some(key)).unwrap_err().to_string();
        for (key, looks_like) in [
            (&b"\"abc\""[..], "looks like JSON text with its quotes"),
            (b"{\"schema\":null,\"payload\":\"abc\"}", "looks like JSON; write"),
            (b"\0\0\0\0\x07\x06abc", "looks like Avro framed for a registry"),
            (
                b"\xc3\x01\0\0\0\0\0\0\0\0\x06abc",
                "looks like Avro in single-object encoding",
            ),
            (b"\x06abc", "looks like an Avro string"),
        ] {
            assert!(error(key).contains(looks_like), "{}", error(key));
        }
        assert!(error(b"abd").ends_with("not \"abd\""));
        assert!(error(b"").ends_with("not \"\""));
    }
}
