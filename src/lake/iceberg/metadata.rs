//! The metadata of a table: its columns, and where its one snapshot is.

use super::manifests::IcebergSnapshot;
use crate::audit::export::columnar::{DEVICE_FIELDS, column_id, element_id};
use crate::audit::export::{ColumnKind, ExportColumn};
use serde_json::{Value, json};

/// What a table is as of a commit.
pub struct TableState<'a> {
    /// The URI of the folder with its files.
    pub location: &'a str,
    pub columns: &'a [ExportColumn],
    pub snapshot: IcebergSnapshot,
    /// What the snapshot has; `None` while the table has no files.
    pub content: Option<SnapshotContent>,
}

/// What a snapshot has.
pub struct SnapshotContent {
    /// The URI of the list of its manifests.
    pub manifest_list: String,
    pub files: usize,
    pub rows: u64,
    /// How many of the rows do not count.
    pub deletes: u64,
}

/// Returns the schema of a table.
pub fn schema(columns: &[ExportColumn]) -> Value {
    let field = |(place, column): (usize, &ExportColumn)| {
        let id = column_id(place);
        let kind = match column.kind {
            ColumnKind::Text => json!("string"),
            ColumnKind::Number => json!("long"),
            // To the microsecond. Readers convert the milliseconds of the files.
            ColumnKind::Time => json!("timestamptz"),
            ColumnKind::Devices => {
                let element = element_id(id);
                let fields = DEVICE_FIELDS.iter().zip(element + 1..);
                let fields: Vec<Value> = fields
                    .map(|(name, id)| json!({"id": id, "name": name, "required": true, "type": "string"}))
                    .collect();
                json!({"type": "list", "element-id": element, "element-required": true,
                    "element": {"type": "struct", "fields": fields}})
            }
        };
        json!({"id": id, "name": column.name, "required": !column.nullable, "type": kind})
    };
    let fields: Vec<Value> = columns.iter().enumerate().map(field).collect();
    json!({"type": "struct", "schema-id": 0, "fields": fields})
}

/// Returns which column of a file without ids is which one of the table.
fn name_mapping(columns: &[ExportColumn]) -> Value {
    let mapping = |(place, column): (usize, &ExportColumn)| {
        let id = column_id(place);
        if column.kind != ColumnKind::Devices {
            return json!({"field-id": id, "names": [column.name]});
        }
        let element = element_id(id);
        let fields = DEVICE_FIELDS.iter().zip(element + 1..);
        let fields: Vec<Value> = fields
            .map(|(name, id)| json!({"field-id": id, "names": [name]}))
            .collect();
        let elements = json!([{"field-id": element, "names": ["element"], "fields": fields}]);
        json!({"field-id": id, "names": [column.name], "fields": elements})
    };
    columns.iter().enumerate().map(mapping).collect()
}

fn last_column_id(columns: &[ExportColumn]) -> i32 {
    let last = |(place, column): (usize, &ExportColumn)| match column.kind {
        ColumnKind::Text | ColumnKind::Number | ColumnKind::Time => column_id(place),
        ColumnKind::Devices => element_id(column_id(place)) + DEVICE_FIELDS.len() as i32,
    };
    columns.iter().enumerate().map(last).max().unwrap_or_default()
}

/// Returns the id of a table: the same for each commit, another one for each place.
fn table_uuid(location: &str) -> String {
    let mut id = *blake3::hash(location.as_bytes()).as_bytes();
    // Version 8: made by a rule of our own.
    id[6] = (id[6] & 0x0f) | 0x80;
    id[8] = (id[8] & 0x3f) | 0x80;
    let hex = blake3::Hash::from_bytes(id).to_hex();
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]];
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// Returns the metadata of a table.
pub fn table_metadata(table: &TableState<'_>) -> Value {
    let TableState {
        location,
        columns,
        snapshot,
        content,
    } = table;
    let IcebergSnapshot {
        id,
        sequence,
        timestamp_ms,
    } = snapshot;
    let mut metadata = json!({
        "format-version": 2,
        "table-uuid": table_uuid(location),
        "location": location,
        "last-sequence-number": sequence,
        "last-updated-ms": timestamp_ms,
        "last-column-id": last_column_id(columns),
        "schemas": [schema(columns)],
        "current-schema-id": 0,
        "partition-specs": [{"spec-id": 0, "fields": []}],
        "default-spec-id": 0,
        "last-partition-id": 999,
        "sort-orders": [{"order-id": 0, "fields": []}],
        "default-sort-order-id": 0,
        "properties": {
            // Files of earlier versions have no ids of columns.
            "schema.name-mapping.default": name_mapping(columns).to_string(),
            // The lake removes its files itself.
            "gc.enabled": "false",
        },
        "snapshots": [],
        "snapshot-log": [],
        "metadata-log": [],
        "refs": {},
    });
    if let Some(SnapshotContent {
        manifest_list,
        files,
        rows,
        deletes,
    }) = content
    {
        metadata["current-snapshot-id"] = json!(id);
        metadata["refs"] = json!({"main": {"snapshot-id": id, "type": "branch"}});
        metadata["snapshot-log"] = json!([{"timestamp-ms": timestamp_ms, "snapshot-id": id}]);
        metadata["snapshots"] = json!([{
            "snapshot-id": id,
            "sequence-number": sequence,
            "timestamp-ms": timestamp_ms,
            "manifest-list": manifest_list,
            "schema-id": 0,
            "summary": {
                "operation": "overwrite",
                "total-data-files": files.to_string(),
                "total-records": rows.to_string(),
                "total-delete-files": u8::from(*deletes > 0).to_string(),
                "total-position-deletes": deletes.to_string(),
                "total-equality-deletes": "0",
            },
        }]);
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::export::tables::{CHANGES, CONCURRENCY, INTERVALS};
    use std::collections::BTreeMap;

    /// The ids of a list of fields, by dotted name.
    fn ids(prefix: &str, fields: &Value, id: &str, into: &mut BTreeMap<String, i64>) {
        for field in fields.as_array().unwrap() {
            let name = field["name"].as_str().or(field["names"][0].as_str()).unwrap();
            let name = format!("{prefix}{name}");
            into.insert(name.clone(), field[id].as_i64().unwrap());
            let kind = &field["type"];
            if kind["type"] == "list" {
                let element = format!("{name}.element");
                into.insert(element.clone(), kind["element-id"].as_i64().unwrap());
                ids(&format!("{element}."), &kind["element"]["fields"], id, into);
            }
            if !field["fields"].is_null() {
                ids(&format!("{name}."), &field["fields"], id, into);
            }
        }
    }

    #[test]
    fn the_names_of_all_columns_are_mapped_to_their_ids_which_differ() {
        for columns in [CHANGES, INTERVALS, CONCURRENCY] {
            let (mut fields, mut mapped) = (BTreeMap::new(), BTreeMap::new());
            ids("", &schema(columns)["fields"], "id", &mut fields);
            ids("", &name_mapping(columns), "field-id", &mut mapped);
            assert_eq!(fields, mapped);
            assert!(fields.len() >= columns.len());
            let mut sorted: Vec<i64> = fields.values().copied().collect();
            sorted.sort_unstable();
            assert_eq!(sorted.last(), Some(&i64::from(last_column_id(columns))));
            sorted.dedup();
            assert_eq!(sorted.len(), fields.len());
        }
        // Tables that were written have them: they stay.
        let mut fields = BTreeMap::new();
        ids("", &schema(CHANGES)["fields"], "id", &mut fields);
        for (name, id) in [
            ("partition", 1),
            ("devices", 12),
            ("devices.element", 1_200),
            ("devices.element.after", 1_205),
        ] {
            assert_eq!(fields[name], id, "{name}");
        }
    }

    #[test]
    fn a_table_keeps_its_id_and_another_place_has_another_one() {
        let id = table_uuid("file:///lake/changes");
        assert_eq!(id, table_uuid("file:///lake/changes"));
        assert_ne!(id, table_uuid("file:///lake/intervals"));
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!((parts, &id[14..15]), (vec![8, 4, 4, 4, 12], "8"));
    }
}
