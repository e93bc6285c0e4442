//! Where the rows of the intervals that hold are: which file, and which row of it.
//!
//! An interval that ends is written again, with its end, and its first row no longer counts. Readers of Iceberg learn that from the
//! position of the row.
//!
//! Memory: at most 60 bytes for each interval that holds, 40 for each one that has ended since all that hold were written, and 64 for
//! each commit since then in which one began.

use crate::lake::manifest::LakeFile;
use crate::presence::change::OutputId;
use std::collections::HashMap;
use std::sync::Arc;

/// A hash of what names an interval: the change that began it, its platform and its device.
pub type RowKey = [u8; 16];

/// Returns the key of an interval.
pub fn row_key(change: OutputId, device: Option<(&str, &str)>) -> RowKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&change.partition.0.to_le_bytes());
    hasher.update(&change.offset.0.to_le_bytes());
    hasher.update(&change.index.to_le_bytes());
    if let Some((platform, device)) = device {
        // With the length of the first, no two pairs have the same bytes.
        hasher.update(&(platform.len() as u64).to_le_bytes());
        hasher.update(platform.as_bytes()).update(device.as_bytes());
    }
    hasher.finalize().as_bytes()[..16]
        .try_into()
        .expect("a hash has 32 bytes")
}

/// A file as it was written: its number, and a row of it.
type RowPlace = (u32, u32);

/// The rows of the files of open intervals.
#[derive(Default)]
pub struct OpenRows {
    /// Of the intervals that hold.
    places: HashMap<RowKey, RowPlace>,
    /// Rows of committed files whose interval has ended.
    ended: Vec<RowPlace>,
    /// Those whose end is not committed yet.
    ending: Vec<RowPlace>,
    /// By number: where the rows are now that were written together.
    files: Vec<WrittenRows>,
    /// The last of the files takes rows.
    is_writing: bool,
}

/// Rows that were written together.
#[derive(Default)]
struct WrittenRows {
    /// Shared by all rows of a file that was joined.
    path: Arc<str>,
    /// The first of them, in the file.
    first: u64,
    rows: u32,
}

impl OpenRows {
    /// Notes the next row of the file that is being written.
    pub fn add(&mut self, key: RowKey) {
        let place = self.next_place();
        self.places.insert(key, place);
    }

    /// Notes the next row, of an interval that has ended.
    pub fn add_ended(&mut self) {
        let place = self.next_place();
        self.ended.push(place);
    }

    fn next_place(&mut self) -> RowPlace {
        if !self.is_writing {
            self.is_writing = true;
            self.files.push(WrittenRows::default());
        }
        let number = self.files.len() - 1;
        let file = &mut self.files[number];
        let row = file.rows;
        file.rows += 1;
        (u32::try_from(number).expect("there are few files"), row)
    }

    /// Notes the path of the file whose rows were added, if there were any.
    pub fn written(&mut self, path: &str) {
        if std::mem::take(&mut self.is_writing)
            && let Some(file) = self.files.last_mut()
        {
            file.path = path.into();
        }
    }

    /// Notes that an interval ends with the next commit.
    pub fn end(&mut self, key: &RowKey) {
        self.ending.extend(self.places.remove(key));
    }

    /// Notes that what has ended is being committed.
    pub fn commit(&mut self) {
        self.ended.append(&mut self.ending);
    }

    /// Forgets all rows: those that count are written again.
    pub fn clear(&mut self) {
        *self = OpenRows::default();
    }

    /// Notes that files were joined, in this order.
    pub fn joined(&mut self, files: &[LakeFile], whole: &str) {
        let (mut before, whole) = (0, Arc::from(whole));
        for file in files {
            for one in self.files.iter_mut().filter(|one| *one.path == file.path) {
                one.first += before;
                one.path = Arc::clone(&whole);
            }
            before += file.rows;
        }
    }

    /// Returns the rows that do not count as of the last commit: path and position, in this order.
    pub fn deleted(&self) -> Vec<(&str, u64)> {
        let place = |(number, row): &RowPlace| {
            let file = &self.files[*number as usize];
            (&*file.path, file.first + u64::from(*row))
        };
        let mut found: Vec<(&str, u64)> = self.ended.iter().map(place).collect();
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::{Offset, Partition};

    fn key(offset: u64) -> RowKey {
        let change = OutputId {
            partition: Partition(0),
            offset: Offset(offset),
            index: 0,
        };
        row_key(change, None)
    }

    fn file(path: &str, rows: u64) -> LakeFile {
        LakeFile {
            path: path.to_owned(),
            rows,
            bytes: 0,
            first: 0,
            last: 0,
            level: 0,
        }
    }

    #[test]
    fn rows_are_found_where_they_are_after_files_were_joined() {
        let mut rows = OpenRows::default();
        for (path, offsets) in [("b", 0..3), ("a", 3..5), ("c", 5..6)] {
            offsets.for_each(|offset| rows.add(key(offset)));
            rows.written(path);
        }
        // A commit in which nothing began.
        rows.written("d");
        for offset in [4, 1, 5, 99] {
            rows.end(&key(offset));
        }
        assert_eq!(rows.deleted(), [], "not committed");
        rows.commit();
        assert_eq!(rows.deleted(), [("a", 1), ("b", 1), ("c", 0)]);
        rows.joined(&[file("b", 3), file("a", 2)], "e");
        assert_eq!(rows.deleted(), [("c", 0), ("e", 1), ("e", 4)]);
        rows.joined(&[file("c", 1), file("e", 5)], "f");
        rows.end(&key(0));
        rows.commit();
        assert_eq!(rows.deleted(), [("f", 0), ("f", 1), ("f", 2), ("f", 5)]);
        rows.clear();
        rows.add(key(0));
        rows.add_ended();
        rows.written("g");
        assert_eq!(rows.deleted(), [("g", 1)]);
    }

    #[test]
    fn intervals_of_one_change_have_different_keys() {
        let change = OutputId {
            partition: Partition(1),
            offset: Offset(2),
            index: 3,
        };
        let devices = [
            None,
            Some(("", "")),
            Some(("a", "bc")),
            Some(("ab", "c")),
            Some(("abc", "")),
        ];
        let mut keys: Vec<RowKey> = devices.into_iter().map(|device| row_key(change, device)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), devices.len());
    }
}
