//! Parquet: columns of 65,536 rows at a time, compressed with Snappy.
//!
//! Memory: the rows of one group, at most 65,536 of them or 32 MiB of text; twice that while files are joined.

use super::{Cell, ColumnKind, ExportColumn};
use crate::presence::LogTime;
use crate::schema::write_output_id;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{ChunkReader, FileReader as _};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::Field;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::io::{self, Write};
use std::sync::Arc;

const GROUP_ROWS: usize = 65_536;
const GROUP_BYTES: usize = 32 << 20;

/// The fields of a device in a list of devices.
pub const DEVICE_FIELDS: [&str; 5] = ["platform", "device", "gateway", "before", "after"];

/// A Parquet file that is being written.
pub struct ParquetFile<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    columns: &'static [ExportColumn],
    leaves: Vec<Leaf>,
    rows: usize,
    text_bytes: usize,
}

/// What is pending of a column that has no columns within.
struct Leaf {
    values: Values,
    /// For each entry whether there is a value; none where there always is one.
    definitions: Option<Vec<i16>>,
    /// For each entry whether it goes on with the list before; none where there is no list.
    repetitions: Option<Vec<i16>>,
}

enum Values {
    Numbers(Vec<i64>),
    /// One text after the other, and where each ends.
    Texts(Vec<u8>, Vec<usize>),
}

fn failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
        error => io::Error::other(error),
    }
}

/// Returns the id of a column of a table, by its place in it. Readers of Apache Iceberg know a column by its id, so a new column of
/// a table is its last one.
pub fn column_id(place: usize) -> i32 {
    i32::try_from(place + 1).expect("a table has few columns")
}

/// Returns the id of the elements of a column of lists. The fields of the elements have the ids after it.
pub fn element_id(column: i32) -> i32 {
    100 * column
}

/// The schema in the notation of Parquet.
fn message_type(columns: &[ExportColumn], ids: &[i32]) -> String {
    let mut text = "message rows {\n".to_owned();
    for (ExportColumn { name, kind, nullable }, id) in columns.iter().zip(ids) {
        let repetition = if *nullable { "OPTIONAL" } else { "REQUIRED" };
        text += &match kind {
            ColumnKind::Text => format!("{repetition} BYTE_ARRAY {name} (STRING) = {id};\n"),
            ColumnKind::Number => format!("{repetition} INT64 {name} = {id};\n"),
            ColumnKind::Time => format!("{repetition} INT64 {name} (TIMESTAMP(MILLIS,true)) = {id};\n"),
            ColumnKind::Devices => {
                let element = element_id(*id);
                let fields = DEVICE_FIELDS.iter().zip(element + 1..);
                let fields: String = fields
                    .map(|(field, id)| format!(" REQUIRED BYTE_ARRAY {field} (STRING) = {id};"))
                    .collect();
                format!(
                    "REQUIRED group {name} (LIST) = {id} {{ REPEATED group list {{ REQUIRED group element = {element} {{{fields} }} }} }}\n"
                )
            }
        };
    }
    text + "}\n"
}

impl<W: Write + Send> ParquetFile<W> {
    pub fn begin(output: W, columns: &'static [ExportColumn]) -> io::Result<ParquetFile<W>> {
        let ids: Vec<i32> = (0..columns.len()).map(column_id).collect();
        ParquetFile::begin_with(output, columns, &ids, None)
    }

    /// Begins a file whose columns have these ids. The numbers of the column `rising` mostly rise, and take a byte or two each.
    pub fn begin_with(
        output: W,
        columns: &'static [ExportColumn],
        ids: &[i32],
        rising: Option<&str>,
    ) -> io::Result<ParquetFile<W>> {
        let schema = parse_message_type(&message_type(columns, ids)).map_err(failed)?;
        let mut properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        if let Some(column) = rising.map(ColumnPath::from) {
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
        }
        let properties = Arc::new(properties.build());
        let writer = SerializedFileWriter::new(output, Arc::new(schema), properties).map_err(failed)?;
        let mut leaves = Vec::new();
        for column in columns {
            let leaf = |values| Leaf {
                values,
                definitions: column.nullable.then(Vec::new),
                repetitions: None,
            };
            match column.kind {
                ColumnKind::Text => leaves.push(leaf(Values::Texts(Vec::new(), Vec::new()))),
                ColumnKind::Number | ColumnKind::Time => leaves.push(leaf(Values::Numbers(Vec::new()))),
                ColumnKind::Devices => leaves.extend(DEVICE_FIELDS.map(|_| Leaf {
                    values: Values::Texts(Vec::new(), Vec::new()),
                    definitions: Some(Vec::new()),
                    repetitions: Some(Vec::new()),
                })),
            }
        }
        Ok(ParquetFile {
            writer,
            columns,
            leaves,
            rows: 0,
            text_bytes: 0,
        })
    }

    pub fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        let mut leaves = self.leaves.iter_mut();
        for (column, cell) in self.columns.iter().zip(cells) {
            if let Cell::Devices(devices) = cell {
                for field in 0..DEVICE_FIELDS.len() {
                    let Some(leaf) = leaves.next() else { break };
                    if devices.is_empty() {
                        leaf.levels(0, 0);
                    }
                    for (number, device) in devices.iter().enumerate() {
                        leaf.levels(1, i16::from(number > 0));
                        let texts: [&str; DEVICE_FIELDS.len()] = [
                            &device.platform,
                            &device.device,
                            &device.gateway,
                            device.before.name(),
                            device.after.name(),
                        ];
                        self.text_bytes += texts[field].len();
                        leaf.text(|bytes| bytes.extend_from_slice(texts[field].as_bytes()));
                    }
                }
                continue;
            }
            let Some(leaf) = leaves.next() else { break };
            let is_null = matches!(cell, Cell::Null);
            assert!(
                column.nullable || !is_null,
                "the column {} always has a value",
                column.name
            );
            leaf.levels(i16::from(!is_null), 0);
            match cell {
                Cell::Null | Cell::Devices(_) => {}
                Cell::Text(text) => {
                    self.text_bytes += text.len();
                    leaf.text(|bytes| bytes.extend_from_slice(text.as_bytes()));
                }
                Cell::Id(id) => leaf.text(|bytes| write_output_id(*id, bytes)),
                Cell::Number(number) => leaf.number(*number),
                Cell::Time(time) => leaf.number(time.0),
            }
        }
        self.rows += 1;
        if self.rows >= GROUP_ROWS || self.text_bytes >= GROUP_BYTES {
            self.write_group()?;
        }
        Ok(())
    }

    /// Appends all rows of a file that has the same columns.
    pub fn append(&mut self, input: impl ChunkReader + 'static) -> io::Result<()> {
        let reader = SerializedFileReader::new(input).map_err(failed)?;
        for number in 0..reader.num_row_groups() {
            let group = reader.get_row_group(number).map_err(failed)?;
            let rows = usize::try_from(group.metadata().num_rows()).map_err(io::Error::other)?;
            if group.num_columns() != self.leaves.len() {
                return Err(io::Error::other("the file has other columns"));
            }
            for (number, leaf) in self.leaves.iter_mut().enumerate() {
                let column = group.get_column_reader(number).map_err(failed)?;
                self.text_bytes += leaf.read(column, rows).map_err(failed)?;
            }
            self.rows += rows;
            if self.rows >= GROUP_ROWS || self.text_bytes >= GROUP_BYTES {
                self.write_group()?;
            }
        }
        Ok(())
    }

    fn write_group(&mut self) -> io::Result<()> {
        let mut group = self.writer.next_row_group().map_err(failed)?;
        for leaf in &mut self.leaves {
            let Some(mut column) = group.next_column().map_err(failed)? else {
                break;
            };
            leaf.write(column.untyped()).map_err(failed)?;
            column.close().map_err(failed)?;
        }
        group.close().map_err(failed)?;
        self.rows = 0;
        self.text_bytes = 0;
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<W> {
        if self.rows > 0 {
            self.write_group()?;
        }
        self.writer.into_inner().map_err(failed)
    }
}

impl Leaf {
    fn levels(&mut self, definition: i16, repetition: i16) {
        if let Some(definitions) = &mut self.definitions {
            definitions.push(definition);
        }
        if let Some(repetitions) = &mut self.repetitions {
            repetitions.push(repetition);
        }
    }

    fn number(&mut self, number: u64) {
        if let Values::Numbers(numbers) = &mut self.values {
            // No number of the rules is greater than the greatest that a column can have.
            numbers.push(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if let Values::Texts(bytes, ends) = &mut self.values {
            write(bytes);
            ends.push(bytes.len());
        }
    }

    /// Takes so many rows of a column of a file. Returns how many bytes of text they have.
    fn read(&mut self, column: ColumnReader, rows: usize) -> Result<usize, ParquetError> {
        let levels = (&mut self.definitions, &mut self.repetitions);
        match (&mut self.values, column) {
            (Values::Numbers(numbers), ColumnReader::Int64ColumnReader(mut column)) => {
                read_column(&mut column, rows, levels, numbers).map(|()| 0)
            }
            (Values::Texts(bytes, ends), ColumnReader::ByteArrayColumnReader(mut column)) => {
                let (mut texts, before) = (Vec::new(), bytes.len());
                read_column(&mut column, rows, levels, &mut texts)?;
                for text in &texts {
                    bytes.extend_from_slice(text.data());
                    ends.push(bytes.len());
                }
                Ok(bytes.len() - before)
            }
            (Values::Numbers(_) | Values::Texts(..), _) => Err(ParquetError::General(
                "a column of the file has another type than its schema".to_owned(),
            )),
        }
    }

    /// Writes what is pending.
    fn write(&mut self, column: &mut ColumnWriter<'_>) -> Result<(), ParquetError> {
        let (definitions, repetitions) = (self.definitions.as_deref(), self.repetitions.as_deref());
        match (&mut self.values, column) {
            (Values::Numbers(numbers), ColumnWriter::Int64ColumnWriter(column)) => {
                column.write_batch(numbers, definitions, repetitions)?;
                numbers.clear();
            }
            (Values::Texts(bytes, ends), ColumnWriter::ByteArrayColumnWriter(column)) => {
                let all = Bytes::from(std::mem::take(bytes));
                let starts = [0].into_iter().chain(ends.iter().copied());
                let texts = starts.zip(ends.iter());
                let texts: Vec<ByteArray> = texts.map(|(start, end)| all.slice(start..*end).into()).collect();
                column.write_batch(&texts, definitions, repetitions)?;
                ends.clear();
            }
            (Values::Numbers(_) | Values::Texts(..), _) => {
                return Err(ParquetError::General(
                    "a column has another type than its schema".to_owned(),
                ));
            }
        }
        if let Some(definitions) = &mut self.definitions {
            definitions.clear();
        }
        if let Some(repetitions) = &mut self.repetitions {
            repetitions.clear();
        }
        Ok(())
    }
}

/// Appends the values and the levels of so many rows.
fn read_column<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
    rows: usize,
    (definitions, repetitions): (&mut Option<Vec<i16>>, &mut Option<Vec<i16>>),
    values: &mut Vec<T::T>,
) -> Result<(), ParquetError> {
    let mut left = rows;
    while left > 0 {
        let (read, ..) = column.read_records(left, definitions.as_mut(), repetitions.as_mut(), values)?;
        if read == 0 {
            return Err(ParquetError::EOF("a column ends before its group does".to_owned()));
        }
        left -= read;
    }
    Ok(())
}

/// Calls `each` with every row of a file whose columns are texts, numbers and times: a cell for each column, in order.
pub fn read_rows(
    input: impl ChunkReader + 'static,
    mut each: impl FnMut(&[Cell<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let reader = SerializedFileReader::new(input).map_err(failed)?;
    for row in reader.get_row_iter(None).map_err(failed)? {
        let row = row.map_err(failed)?;
        let number = |number: i64| u64::try_from(number).map_err(io::Error::other);
        let cells = row.get_column_iter().map(|(name, field)| {
            Ok(match field {
                Field::Null => Cell::Null,
                Field::Str(text) => Cell::Text(text),
                Field::Long(value) => Cell::Number(number(*value)?),
                Field::TimestampMillis(value) => Cell::Time(LogTime(number(*value)?)),
                _ => return Err(io::Error::other(format!("the column {name} has an unexpected type"))),
            })
        });
        each(&cells.collect::<io::Result<Vec<_>>>()?)?;
    }
    Ok(())
}
