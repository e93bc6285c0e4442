//! Our schemas, and the framing: the few bytes before a datum that say with which schema it was written.
//!
//! Two framings are known (`docs/rules.md` section 9). Avro single-object encoding: C3 01, then the schema's
//! fingerprint, 8 bytes, little-endian. Confluent's wire format: 00, then the schema's id in a registry, 4 bytes,
//! big-endian, or 01, then the schema's GUID, 16 bytes. Confluent's framing may also be in a header of the record, and Apicurio's
//! serializers put an id into one; the value is then the datum alone.

use crate::schema::Malformed;
use std::fmt;
#[cfg(test)]
use std::sync::LazyLock;

/// One of our schemas: one flat record type per topic, in `schemas/*.avsc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schema {
    Event,
    Change,
    Kick,
    UserState,
    Quarantined,
    Incident,
}

impl Schema {
    pub const ALL: [Schema; 6] = [
        Schema::Event,
        Schema::Change,
        Schema::Kick,
        Schema::UserState,
        Schema::Quarantined,
        Schema::Incident,
    ];

    /// Returns the name of the record type, without its namespace.
    pub fn name(self) -> &'static str {
        match self {
            Schema::Event => "Event",
            Schema::Change => "Change",
            Schema::Kick => "Kick",
            Schema::UserState => "UserState",
            Schema::Quarantined => "Quarantined",
            Schema::Incident => "Incident",
        }
    }

    /// Returns the file's name in `schemas/`.
    pub fn file(self) -> &'static str {
        match self {
            Schema::Event => "event.avsc",
            Schema::Change => "change.avsc",
            Schema::Kick => "kick.avsc",
            Schema::UserState => "user_state.avsc",
            Schema::Quarantined => "quarantined.avsc",
            Schema::Incident => "incident.avsc",
        }
    }

    /// Returns the schema as JSON, as it is registered.
    pub fn json(self) -> &'static str {
        match self {
            Schema::Event => include_str!("../../../schemas/event.avsc"),
            Schema::Change => include_str!("../../../schemas/change.avsc"),
            Schema::Kick => include_str!("../../../schemas/kick.avsc"),
            Schema::UserState => include_str!("../../../schemas/user_state.avsc"),
            Schema::Quarantined => include_str!("../../../schemas/quarantined.avsc"),
            Schema::Incident => include_str!("../../../schemas/incident.avsc"),
        }
    }

    /// Returns CRC-64-AVRO of the schema's Parsing Canonical Form. It is a constant, so that framing costs nothing; a
    /// test compares it with the schema's text.
    pub const fn fingerprint(self) -> u64 {
        match self {
            Schema::Event => 0xd6cd_b638_91b9_1905,
            Schema::Change => 0x0c5a_1d37_91db_f442,
            Schema::Kick => 0x3c32_5dde_450f_1ddf,
            Schema::UserState => 0xc314_7d16_cfb2_0374,
            Schema::Quarantined => 0xffb7_294b_78d7_633f,
            Schema::Incident => 0x2cc1_d30a_f03f_3415,
        }
    }

    /// Returns the schema for `apache-avro`, parsed once.
    #[cfg(test)]
    fn parsed(self) -> &'static apache_avro::Schema {
        static PARSED: LazyLock<[apache_avro::Schema; Schema::ALL.len()]> = LazyLock::new(|| {
            Schema::ALL.map(|schema| apache_avro::Schema::parse_str(schema.json()).expect("our own schemas are valid"))
        });
        &PARSED[self as usize]
    }

    const fn header(self) -> [u8; SINGLE_OBJECT_BYTES] {
        let [a, b, c, d, e, f, g, h] = self.fingerprint().to_le_bytes();
        [SINGLE_OBJECT[0], SINGLE_OBJECT[1], a, b, c, d, e, f, g, h]
    }
}

/// The framing of a change as of the rehearsal of a revision, in single-object encoding: its schema is in
/// `tests/rehearsal/change.avsc`, and in no registry.
pub(super) const REHEARSAL: [u8; SINGLE_OBJECT_BYTES] = [0xc3, 0x01, 0x53, 0xa4, 0xb7, 0x1c, 0x0d, 0x97, 0xfb, 0xfc];

const SINGLE_OBJECT: [u8; 2] = [0xc3, 0x01];
/// The length of the framing in single-object encoding: the mark and the fingerprint.
pub const SINGLE_OBJECT_BYTES: usize = 10;
const CONFLUENT: u8 = 0;
const CONFLUENT_GUID: u8 = 1;
/// The header in which Confluent's serializers name the schema of a value.
const CONFLUENT_HEADER: &str = "__value_schema_id";
/// The header in which Apicurio's serializers do, with the id of the schema's text: what Confluent's interface takes.
const APICURIO_CONTENT_HEADER: &str = "apicurio.value.contentId";
/// The same with the id of a version of an artifact, which Confluent's interface does not take.
const APICURIO_GLOBAL_HEADER: &str = "apicurio.value.globalId";
/// The headers of a record that may name the schema of its value.
pub const SCHEMA_HEADERS: [&str; 3] = [CONFLUENT_HEADER, APICURIO_CONTENT_HEADER, APICURIO_GLOBAL_HEADER];

/// The schema that the framing of a datum names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Single-object encoding: the fingerprint of the writer's schema.
    Fingerprint(u64),
    /// Confluent's wire format: the id of the writer's schema in a registry.
    Id(u32),
    /// Confluent's wire format: the GUID of the writer's schema, in any registry that has it.
    Guid(Guid),
}

/// A registry's global id of a schema, wherever the schema is registered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Appends the framing of a datum of our own schema, in single-object encoding. The datum has to follow.
#[inline]
pub fn frame(schema: Schema, out: &mut Vec<u8>) {
    out.extend_from_slice(&schema.header());
}

/// Appends Confluent's framing of a datum whose schema has this id in the registry. The datum has to follow.
pub fn frame_with_id(id: u32, out: &mut Vec<u8>) {
    out.push(CONFLUENT);
    out.extend_from_slice(&id.to_be_bytes());
}

/// The framing with which we write.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Framing {
    #[default]
    SingleObject,
    /// Confluent's framing, with the registry's ids of our schemas, in the order of [`Schema::ALL`].
    Ids([u32; Schema::ALL.len()]),
}

impl Framing {
    /// Appends the framing of a datum of our own schema. The datum has to follow.
    #[inline]
    pub fn frame(&self, schema: Schema, out: &mut Vec<u8>) {
        match self {
            Framing::SingleObject => frame(schema, out),
            Framing::Ids(ids) => frame_with_id(ids[schema as usize], out),
        }
    }
}

/// Splits a record's value into its framing and the datum. Does not check the datum.
pub fn unframe(value: &[u8]) -> Result<(Frame, &[u8]), Malformed> {
    if let Some((fingerprint, datum)) = value.strip_prefix(&SINGLE_OBJECT).and_then(<[u8]>::split_first_chunk) {
        return Ok((Frame::Fingerprint(u64::from_le_bytes(*fingerprint)), datum));
    }
    if let Some((id, datum)) = value.strip_prefix(&[CONFLUENT]).and_then(<[u8]>::split_first_chunk) {
        return Ok((Frame::Id(u32::from_be_bytes(*id)), datum));
    }
    if let Some((guid, datum)) = value
        .strip_prefix(&[CONFLUENT_GUID])
        .and_then(<[u8]>::split_first_chunk)
    {
        return Ok((Frame::Guid(Guid(*guid)), datum));
    }
    const UNKNOWN: &str =
        "the value begins neither as single-object encoding (c3 01) nor as Confluent's wire format (00, 01)";
    Err(Malformed::invalid(match value {
        [] => "the value is empty".to_owned(),
        [CONFLUENT, ..] => "the value ends within the id of its schema".to_owned(),
        [CONFLUENT_GUID, ..] => "the value ends within the GUID of its schema".to_owned(),
        [0xc3, 0x01, ..] => "the value ends within the fingerprint of its schema".to_owned(),
        other => format!("{UNKNOWN}{}", looks_like(other)),
    }))
}

/// Returns a hint on how a value with an unknown framing was probably written.
fn looks_like(value: &[u8]) -> &'static str {
    match value {
        [b'{' | b'[' | b'"', ..] => ": it looks like JSON, which POST /v1/events takes, but not the topic",
        [b'O', b'b', b'j', 1, ..] => {
            ": it looks like an Avro file; write the datum of one record alone, with its framing before it"
        }
        [3, 0 | 5, rest @ ..] if rest.len() >= 16 => {
            ": it looks like the framing of AWS Glue; use a serializer for Confluent's wire format"
        }
        _ => "",
    }
}

/// Splits a value whose schema may be named by a header of its record, of this name and value. For our own schemas in
/// single-object encoding the header is ignored: a program that copies headers from one record to another may have left the
/// header of another value.
pub fn unframe_with<'v>(header: Option<(&str, &[u8])>, value: &'v [u8]) -> Result<(Frame, &'v [u8]), Malformed> {
    let is_ours = || Schema::ALL.into_iter().any(|schema| own_datum(schema, value).is_some());
    let Some((name, header)) = header.filter(|_| !is_ours()) else {
        return unframe(value);
    };
    let named = match name {
        APICURIO_CONTENT_HEADER => content_id(header),
        APICURIO_GLOBAL_HEADER => Err(
            "must not name the schema, since no registry knows its global id by Confluent's interface; set the serializer's \
             apicurio.registry.use-id=contentId"
                .to_owned(),
        ),
        _ => confluent(header),
    };
    match named {
        Ok(frame) => Ok((frame, value)),
        Err(why) => Err(Malformed::invalid(format!("the header {name} {why}"))),
    }
}

/// Reads the framing in Confluent's header, or says what the header must have.
fn confluent(header: &[u8]) -> Result<Frame, String> {
    if let Some((guid, _)) = header
        .strip_prefix(&[CONFLUENT_GUID])
        .and_then(<[u8]>::split_first_chunk)
    {
        return Ok(Frame::Guid(Guid(*guid)));
    }
    if let Some((id, _)) = header.strip_prefix(&[CONFLUENT]).and_then(<[u8]>::split_first_chunk) {
        return Ok(Frame::Id(u32::from_be_bytes(*id)));
    }
    let begin = header.first();
    Err(format!(
        "must have 01 and a GUID of 16 bytes, or 00 and an id of 4 bytes, not {} bytes{}",
        header.len(),
        begin.map_or(String::new(), |first| format!(" beginning with {first:02x}"))
    ))
}

/// Reads the id in Apicurio's header, or says what the header must have.
fn content_id(header: &[u8]) -> Result<Frame, String> {
    let id = <[u8; 8]>::try_from(header).map(u64::from_be_bytes);
    let id = id.ok().and_then(|id| u32::try_from(id).ok());
    id.map(Frame::Id)
        .ok_or_else(|| format!("must have 8 bytes, an id of at most {}", u32::MAX))
}

/// Returns the datum if the value is framed as our own `schema` in single-object encoding. This is the fast path.
#[inline]
pub(super) fn own_datum(schema: Schema, value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(&schema.header())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fingerprint_is_that_of_the_schema_s_text() {
        for schema in Schema::ALL {
            let fingerprint = super::super::writer::fingerprint(schema.json()).unwrap();
            assert_eq!(
                schema.fingerprint(),
                fingerprint,
                "{schema:?} must be {fingerprint:#018x}"
            );
            assert_eq!(
                schema.parsed().name().unwrap().to_string(),
                format!("rollcall.{}", schema.name())
            );
        }
    }

    #[test]
    fn the_rehearsal_has_the_fingerprint_of_its_schema_s_text() {
        let text = include_str!("../../../tests/rehearsal/change.avsc");
        let fingerprint = super::super::writer::fingerprint(text).unwrap();
        assert_eq!(REHEARSAL[..2], SINGLE_OBJECT);
        assert_eq!(REHEARSAL[2..], fingerprint.to_le_bytes());
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let mut value = Vec::new();
        frame(Schema::Kick, &mut value);
        value.push(7);
        assert_eq!(
            unframe(&value),
            Ok((Frame::Fingerprint(Schema::Kick.fingerprint()), &[7][..]))
        );
        assert_eq!(own_datum(Schema::Kick, &value), Some(&[7][..]));
        assert_eq!(own_datum(Schema::Event, &value), None);
        let mut value = Vec::new();
        frame_with_id(0x0102_0304, &mut value);
        value.push(7);
        assert_eq!(value, [0, 1, 2, 3, 4, 7]);
        assert_eq!(unframe(&value), Ok((Frame::Id(0x0102_0304), &[7][..])));
        let value = [&[1][..], &[9; 16], &[7]].concat();
        assert_eq!(unframe(&value), Ok((Frame::Guid(Guid([9; 16])), &[7][..])));
    }

    #[test]
    fn a_header_names_the_schema_of_a_value_that_is_not_ours() {
        let guid = [1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let (frame, datum) = unframe_with(Some((CONFLUENT_HEADER, &guid)), b"datum").unwrap();
        let Frame::Guid(named) = frame else { panic!("{frame:?}") };
        assert_eq!(
            (named.to_string().as_str(), datum),
            ("00010203-0405-0607-0809-0a0b0c0d0e0f", &b"datum"[..])
        );
        assert_eq!(
            unframe_with(Some((CONFLUENT_HEADER, &[0, 0, 0, 1, 2])), b"datum"),
            Ok((Frame::Id(258), &b"datum"[..]))
        );
        let mut ours = Vec::new();
        frame_of_ours(&mut ours);
        assert_eq!(unframe_with(Some((CONFLUENT_HEADER, &guid)), &ours), unframe(&ours));
        assert_eq!(unframe_with(None, &ours), unframe(&ours));
        for (wrong, expected) in [
            (&[][..], "not 0 bytes"),
            (&guid[..16], "not 16 bytes beginning with 01"),
            (&[7], "with 07"),
        ] {
            let error = unframe_with(Some((CONFLUENT_HEADER, wrong)), b"datum");
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains("__value_schema_id") && error.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn the_header_of_apicurios_serializers_names_the_schema_by_the_id_of_its_text() {
        let named = |name: &str, header: &[u8]| {
            let unframed = unframe_with(Some((name, header)), b"datum");
            unframed.map(|(frame, _)| frame).map_err(|error| error.to_string())
        };
        let content = |header: &[u8]| named(APICURIO_CONTENT_HEADER, header);
        assert_eq!(content(&[0, 0, 0, 0, 0, 0, 1, 2]), Ok(Frame::Id(258)));
        for wrong in [&[0, 0, 0, 1, 0, 0, 0, 0][..], &[0, 0, 0, 1], &[]] {
            let error = content(wrong).unwrap_err();
            assert!(error.contains("apicurio.value.contentId must have 8 bytes"), "{error}");
        }
        let error = named(APICURIO_GLOBAL_HEADER, &[0, 0, 0, 0, 0, 0, 0, 7]).unwrap_err();
        assert!(error.contains("apicurio.registry.use-id=contentId"), "{error}");
    }

    fn frame_of_ours(out: &mut Vec<u8>) {
        frame(Schema::Event, out);
        out.push(7);
    }

    #[test]
    fn each_framing_says_what_was_asked_of_it() {
        for (schema, id) in Schema::ALL.into_iter().zip(7..) {
            let mut value = Vec::new();
            Framing::SingleObject.frame(schema, &mut value);
            assert_eq!(unframe(&value), Ok((Frame::Fingerprint(schema.fingerprint()), &[][..])));
            let mut value = Vec::new();
            Framing::Ids([7, 8, 9, 10, 11, 12]).frame(schema, &mut value);
            assert_eq!(unframe(&value), Ok((Frame::Id(id), &[][..])));
        }
    }

    #[test]
    fn a_value_without_a_whole_frame_is_told_so() {
        let error = |value: &[u8]| unframe(value).unwrap_err().to_string();
        assert_eq!(error(&[]), "the value is empty");
        assert_eq!(error(&[0, 0, 0, 1]), "the value ends within the id of its schema");
        assert_eq!(
            error(&[0xc3, 1, 0, 0]),
            "the value ends within the fingerprint of its schema"
        );
        assert!(error(b"{\"type\":\"tick\"}").starts_with("the value begins neither"));
        assert!(error(b"{\"type\":\"tick\"}").contains("looks like JSON"));
        assert!(error(&[0xc3]).starts_with("the value begins neither"));
        assert_eq!(error(&[1; 16]), "the value ends within the GUID of its schema");
        assert!(error(b"Obj\x01\x02").contains("looks like an Avro file"));
        assert!(error(&[3; 20]).ends_with("(00, 01)"));
        let glue = [&[3, 0][..], &[7; 16], b"datum"].concat();
        assert!(error(&glue).contains("AWS Glue"));
    }
}
