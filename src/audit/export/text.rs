//! CSV (RFC 4180, with a header) and JSON lines. Times are RFC 3339 in UTC.

use super::{Cell, ExportColumn};
use crate::presence::LogTime;
use crate::schema::json::{self, Object};
use crate::schema::write_output_id;
use std::io::{self, BufWriter, Write};

/// A text file that is being written.
pub struct TextFile<W: Write> {
    output: BufWriter<W>,
    columns: &'static [ExportColumn],
    is_csv: bool,
    line: Vec<u8>,
}

fn shown_time(time: LogTime) -> String {
    let date = i64::try_from(time.0).ok();
    match date.and_then(chrono::DateTime::from_timestamp_millis) {
        Some(date) => date.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        None => time.0.to_string(),
    }
}

impl<W: Write> TextFile<W> {
    /// Begins a CSV file: a header with the names of the columns.
    pub fn csv(output: W, columns: &'static [ExportColumn]) -> io::Result<TextFile<W>> {
        let mut output = BufWriter::new(output);
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        writeln!(output, "{}", names.join(","))?;
        Ok(TextFile {
            output,
            columns,
            is_csv: true,
            line: Vec::new(),
        })
    }

    /// Begins a file of JSON objects, one a line.
    pub fn jsonl(output: W, columns: &'static [ExportColumn]) -> TextFile<W> {
        TextFile {
            output: BufWriter::new(output),
            columns,
            is_csv: false,
            line: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        self.line.clear();
        if self.is_csv {
            self.csv_row(cells);
        } else {
            self.json_row(cells);
        }
        self.line.push(b'\n');
        self.output.write_all(&self.line)
    }

    fn csv_row(&mut self, cells: &[Cell<'_>]) {
        for (number, cell) in cells.iter().enumerate() {
            if number > 0 {
                self.line.push(b',');
            }
            match cell {
                // Nothing at all; an empty text has quotes.
                Cell::Null => {}
                Cell::Text(text) => csv_text(&mut self.line, text),
                Cell::Id(id) => write_output_id(*id, &mut self.line),
                Cell::Number(number) => self.line.extend_from_slice(number.to_string().as_bytes()),
                Cell::Time(time) => self.line.extend_from_slice(shown_time(*time).as_bytes()),
                Cell::Devices(devices) => {
                    let mut list = Vec::new();
                    json::list(&mut list, *devices, json::device_change);
                    csv_text(&mut self.line, &String::from_utf8_lossy(&list));
                }
            }
        }
    }

    fn json_row(&mut self, cells: &[Cell<'_>]) {
        let mut object = Object::new(&mut self.line);
        for (column, cell) in self.columns.iter().zip(cells) {
            let name = column.name;
            match cell {
                Cell::Null => object.raw(name, b"null"),
                Cell::Text(text) => object.text(name, text),
                Cell::Id(id) => object.id(name, id),
                Cell::Number(number) => object.number(name, *number),
                Cell::Time(time) => object.text(name, &shown_time(*time)),
                Cell::Devices(devices) => object.list(name, *devices, json::device_change),
            };
        }
        object.end();
    }

    pub fn finish(self) -> io::Result<W> {
        self.output.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// Writes a text, in quotes where it could be taken for something else.
fn csv_text(line: &mut Vec<u8>, text: &str) {
    if !text.is_empty() && !text.contains([',', '"', '\n', '\r']) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    line.push(b'"');
    line.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    line.push(b'"');
}
