//! Records: as they are written, and as they are read.

use crate::presence::Offset;

/// A record to be written. The log sets its offset and its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRecord {
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: Headers,
}

/// Names and values of a record's headers. Only a log that keeps headers stores them
/// ([`OwnedPartition::keeps_headers`](super::OwnedPartition::keeps_headers)); another one remembers the traces of the newest events for their owner.
pub type Headers = Vec<(&'static str, Vec<u8>)>;

/// The header with the id of an output.
pub const ID_HEADER: &str = "id";
/// The record headers in which serializers name the schema of the value: Confluent's, and two of Apicurio's. The first of these
/// that a record has counts. Of events only these and [`TRACE_HEADER`] are read.
pub const SCHEMA_HEADERS: [&str; 3] = [
    "__value_schema_id",
    "apicurio.value.contentId",
    "apicurio.value.globalId",
];
/// The record header that names the trace of a record (W3C Trace Context).
pub const TRACE_HEADER: &str = "traceparent";

/// A record that was read from the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub offset: Offset,
    /// Time of the append in milliseconds, set by the log. Never decreases within a partition of the embedded log.
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    /// The record has no value, and `value` is empty. Possible only in a log that other programs write to.
    pub is_null: bool,
    /// `None` for most records, and for every record of a log that keeps no headers.
    pub headers: Option<Box<RecordHeaders>>,
}

/// The headers of a record that are read; apart from it, since few records have any and all of them are moved and copied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordHeaders {
    /// The first of the [`SCHEMA_HEADERS`]. Possible only in a log that other programs write to.
    pub schema: Option<SchemaHeader>,
    /// [`TRACE_HEADER`], as the writer of the record set it.
    pub traceparent: Option<Box<[u8]>>,
    /// [`ID_HEADER`] of an output.
    pub id: Option<Box<[u8]>>,
}

/// A header that names the schema of a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaHeader {
    /// One of [`SCHEMA_HEADERS`].
    pub name: &'static str,
    pub value: Box<[u8]>,
}

impl RecordHeaders {
    /// Returns `None` if there is no header.
    pub fn boxed(self) -> Option<Box<RecordHeaders>> {
        (self != RecordHeaders::default()).then(|| Box::new(self))
    }
}

impl Record {
    pub fn schema_header(&self) -> Option<&SchemaHeader> {
        self.headers.as_ref()?.schema.as_ref()
    }

    pub fn traceparent(&self) -> Option<&[u8]> {
        self.headers.as_ref()?.traceparent.as_deref()
    }

    /// Returns the header [`ID_HEADER`] of an output.
    pub fn id(&self) -> Option<&[u8]> {
        self.headers.as_ref()?.id.as_deref()
    }

    /// Returns what identifies the schema of the value: name and value of the schema header, if there is one, and the value of
    /// the record, whose first bytes may name the schema.
    pub fn framed(&self) -> (Option<(&str, &[u8])>, &[u8]) {
        let header = self.schema_header();
        (header.map(|header| (header.name, &*header.value)), &self.value)
    }
}
