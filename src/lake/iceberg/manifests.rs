//! The manifests of a snapshot and their list, as the specification of Iceberg has them in format version 2.
//!
//! Every file is one that the snapshot has added: there are no snapshots before it.

use super::container::{AvroRecord, container};
use serde_json::{Value, json};

/// The one snapshot of a table.
pub struct IcebergSnapshot {
    pub id: u64,
    pub sequence: u64,
    pub timestamp_ms: u64,
}

/// What the files of a manifest have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileContent {
    Rows,
    /// Positions of rows that do not count.
    PositionDeletes,
}

/// A file that a manifest names.
pub struct NamedFile {
    pub uri: String,
    pub rows: u64,
    pub bytes: u64,
}

/// A manifest that the list names.
pub struct NamedManifest {
    pub file: NamedFile,
    pub content: FileContent,
    /// How many files it names.
    pub files: usize,
}

impl FileContent {
    fn number(self) -> i64 {
        match self {
            FileContent::Rows => 0,
            FileContent::PositionDeletes => 1,
        }
    }
}

fn record(name: &str, fields: Vec<Value>) -> Value {
    json!({"type": "record", "name": name, "fields": fields})
}

fn field(id: u32, name: &str, kind: impl Into<Value>) -> Value {
    json!({"name": name, "type": kind.into(), "field-id": id})
}

fn optional_long(id: u32, name: &str) -> Value {
    json!({"name": name, "type": ["null", "long"], "default": null, "field-id": id})
}

fn entry_schema() -> Value {
    let file = vec![
        field(134, "content", "int"),
        field(100, "file_path", "string"),
        field(101, "file_format", "string"),
        field(102, "partition", record("r102", Vec::new())),
        field(103, "record_count", "long"),
        field(104, "file_size_in_bytes", "long"),
    ];
    let entry = vec![
        field(0, "status", "int"),
        optional_long(1, "snapshot_id"),
        optional_long(3, "sequence_number"),
        optional_long(4, "file_sequence_number"),
        field(2, "data_file", record("r2", file)),
    ];
    record("manifest_entry", entry)
}

fn list_schema() -> Value {
    let manifest = vec![
        field(500, "manifest_path", "string"),
        field(501, "manifest_length", "long"),
        field(502, "partition_spec_id", "int"),
        field(517, "content", "int"),
        field(515, "sequence_number", "long"),
        field(516, "min_sequence_number", "long"),
        field(503, "added_snapshot_id", "long"),
        field(504, "added_files_count", "int"),
        field(505, "existing_files_count", "int"),
        field(506, "deleted_files_count", "int"),
        field(512, "added_rows_count", "long"),
        field(513, "existing_rows_count", "long"),
        field(514, "deleted_rows_count", "long"),
    ];
    record("manifest_file", manifest)
}

/// The status of a file that the snapshot has added.
const ADDED: i64 = 1;

/// Returns a manifest. `schema` is that of the table.
pub fn manifest(snapshot: &IcebergSnapshot, content: FileContent, schema: &Value, files: &[NamedFile]) -> Vec<u8> {
    let properties = [
        ("schema", schema.to_string()),
        ("schema-id", "0".to_owned()),
        ("partition-spec", "[]".to_owned()),
        ("partition-spec-id", "0".to_owned()),
        ("format-version", "2".to_owned()),
        (
            "content",
            match content {
                FileContent::Rows => "data".to_owned(),
                FileContent::PositionDeletes => "deletes".to_owned(),
            },
        ),
    ];
    let entry = |file: &NamedFile| {
        AvroRecord::default()
            .long(ADDED)
            .some_count(snapshot.id)
            .some_count(snapshot.sequence)
            .some_count(snapshot.sequence)
            .long(content.number())
            .text(&file.uri)
            .text("PARQUET")
            .count(file.rows)
            .count(file.bytes)
    };
    let entries: Vec<AvroRecord> = files.iter().map(entry).collect();
    container(&entry_schema(), &properties, &entries)
}

/// Returns the list of the manifests of a snapshot.
pub fn manifest_list(snapshot: &IcebergSnapshot, manifests: &[NamedManifest]) -> Vec<u8> {
    let properties = [
        ("snapshot-id", snapshot.id.to_string()),
        ("parent-snapshot-id", "null".to_owned()),
        ("sequence-number", snapshot.sequence.to_string()),
        ("format-version", "2".to_owned()),
    ];
    let entry = |NamedManifest { file, content, files }: &NamedManifest| {
        AvroRecord::default()
            .text(&file.uri)
            .count(file.bytes)
            .long(0)
            .long(content.number())
            .count(snapshot.sequence)
            .count(snapshot.sequence)
            .count(snapshot.id)
            .count(*files as u64)
            .long(0)
            .long(0)
            .count(file.rows)
            .long(0)
            .long(0)
    };
    let entries: Vec<AvroRecord> = manifests.iter().map(entry).collect();
    container(&list_schema(), &properties, &entries)
}
