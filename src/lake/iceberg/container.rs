//! Avro container files of a few records, without compression. The same records give the same bytes.
//!
//! The codec of [`crate::schema`] is for single records whose schema is known. Here the schema goes along, as JSON with the attributes
//! that Iceberg wants (`field-id`).

use crate::varint;
use serde_json::Value;

/// A record, field by field in the order of its schema.
#[derive(Default)]
pub struct AvroRecord(Vec<u8>);

impl AvroRecord {
    /// Adds an `int` or a `long`.
    pub fn long(mut self, number: i64) -> AvroRecord {
        put_long(&mut self.0, number);
        self
    }

    /// Adds a `long` that counts something.
    pub fn count(self, number: u64) -> AvroRecord {
        self.long(number.cast_signed())
    }

    /// Adds a value of the union of null and `long`.
    pub fn some_count(self, number: u64) -> AvroRecord {
        self.long(1).count(number)
    }

    pub fn text(mut self, text: &str) -> AvroRecord {
        put_bytes(&mut self.0, text.as_bytes());
        self
    }
}

/// Returns a file. `properties` are metadata of the file beside its schema.
pub fn container(schema: &Value, properties: &[(&str, String)], records: &[AvroRecord]) -> Vec<u8> {
    let mut file = b"Obj\x01".to_vec();
    let own = [("avro.schema", schema.to_string()), ("avro.codec", "null".to_owned())];
    // A map: one block of entries, and an empty one.
    put_long(&mut file, (own.len() + properties.len()) as i64);
    for (name, value) in own.iter().chain(properties) {
        put_bytes(&mut file, name.as_bytes());
        put_bytes(&mut file, value.as_bytes());
    }
    put_long(&mut file, 0);
    let block: Vec<u8> = records.iter().flat_map(|record| &record.0).copied().collect();
    // What separates the blocks. Any 16 bytes will do.
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file).update(&block);
    let sync: [u8; 16] = hasher.finalize().as_bytes()[..16]
        .try_into()
        .expect("a hash has 32 bytes");
    file.extend(sync);
    if !records.is_empty() {
        put_long(&mut file, records.len() as i64);
        put_bytes(&mut file, &block);
        file.extend(sync);
    }
    file
}

fn put_long(out: &mut Vec<u8>, number: i64) {
    varint::put(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use apache_avro::Reader;
    use apache_avro::types::Value as Avro;
    use serde_json::json;

    #[test]
    fn a_container_is_read_by_another_implementation() {
        let schema = json!({"type": "record", "name": "r", "fields": [
            {"name": "number", "type": "long", "field-id": 1},
            {"name": "text", "type": "string", "field-id": 2},
            {"name": "nothing", "type": {"type": "record", "name": "n", "fields": []}, "field-id": 3},
            {"name": "optional", "type": ["null", "long"], "default": null, "field-id": 4},
        ]});
        for count in [0, 1, 1_000] {
            let numbers = [0, -1, 63, -64, 64, i64::MAX, i64::MIN].into_iter().cycle().take(count);
            let record = |number: i64| {
                AvroRecord::default()
                    .long(number)
                    .text(&format!("né {number}"))
                    .some_count(7)
            };
            let records: Vec<AvroRecord> = numbers.clone().map(record).collect();
            let properties = [("format-version", "2".to_owned())];
            let file = container(&schema, &properties, &records);
            assert_eq!(file, container(&schema, &properties, &records));
            let reader = Reader::new(&file[..]).unwrap();
            assert_eq!(reader.user_metadata()["format-version"], b"2");
            let read: Vec<Avro> = reader.map(|record| record.unwrap()).collect();
            let expected = |number: i64| {
                let fields = [
                    ("number", Avro::Long(number)),
                    ("text", Avro::String(format!("né {number}"))),
                    ("nothing", Avro::Record(Vec::new())),
                    ("optional", Avro::Union(1, Box::new(Avro::Long(7)))),
                ];
                Avro::Record(fields.map(|(name, value)| (name.to_owned(), value)).to_vec())
            };
            assert_eq!(read, numbers.map(expected).collect::<Vec<_>>());
        }
    }
}
