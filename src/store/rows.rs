//! The rows of a commit, in the order of their keys.
//!
//! RocksDB looks up the place of each row that is inserted among those before it; where each row comes after the one
//! before, it need not look. Sorting here is cheaper: by the sixteen bytes behind what all keys of a kind begin with,
//! in which nearly all of them differ.

use rocksdb::WriteBatch;
use std::collections::BTreeMap;

/// How many bytes of a key are compared as one number.
const COMPARED: usize = 16;

/// The rows that are written or deleted, by the first byte of their keys.
#[derive(Default)]
pub(super) struct Rows {
    /// Keys and values, one after the other.
    bytes: Vec<u8>,
    kinds: BTreeMap<u8, Vec<Row>>,
}

struct Row {
    /// Bytes of the key, behind those that all keys of the kind have in common.
    compared: u128,
    start: usize,
    key: u32,
    /// The length of the value; `None`: the row is deleted.
    value: Option<u32>,
}

impl Row {
    fn key<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        &bytes[self.start..][..self.key as usize]
    }
}

impl Rows {
    /// Expects keys and values of this many bytes.
    pub fn with_capacity(bytes: usize) -> Rows {
        Rows {
            bytes: Vec::with_capacity(bytes),
            kinds: BTreeMap::new(),
        }
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.add(key, Some(value));
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.add(key, None);
    }

    fn add(&mut self, key: &[u8], value: Option<&[u8]>) {
        let row = Row {
            compared: 0,
            start: self.bytes.len(),
            key: key.len() as u32,
            value: value.map(|value| value.len() as u32),
        };
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.kinds
            .entry(key.first().copied().unwrap_or_default())
            .or_default()
            .push(row);
    }

    /// Returns how many bytes keys and values have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the rows in the order of their keys; rows of the same key stay in the order in which they came.
    pub fn into_batch(mut self) -> WriteBatch {
        let count: usize = self.kinds.values().map(Vec::len).sum();
        let bytes = self.bytes;
        let mut batch = WriteBatch::with_capacity_bytes(bytes.len() + 16 * count);
        for rows in self.kinds.values_mut() {
            sort(rows, &bytes);
            for row in rows {
                let key = row.key(&bytes);
                match row.value {
                    Some(length) => batch.put(key, &bytes[row.start + key.len()..][..length as usize]),
                    None => batch.delete(key),
                }
            }
        }
        batch
    }
}

fn sort(rows: &mut [Row], bytes: &[u8]) {
    let Some(first) = rows.first().map(|row| row.key(bytes)) else {
        return;
    };
    let common = rows.iter().fold(first.len(), |common, row| {
        let same = first[..common].iter().zip(row.key(bytes));
        same.take_while(|(one, other)| one == other).count()
    });
    for row in &mut *rows {
        let rest = &row.key(bytes)[common..];
        let mut compared = [0; COMPARED];
        let length = rest.len().min(COMPARED);
        compared[..length].copy_from_slice(&rest[..length]);
        row.compared = u128::from_be_bytes(compared);
    }
    rows.sort_unstable_by(|one, other| {
        let compared = one.compared.cmp(&other.compared);
        compared.then_with(|| (one.key(bytes), one.start).cmp(&(other.key(bytes), other.start)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::WriteBatchIterator;

    #[derive(Default)]
    struct Seen(Vec<(Vec<u8>, Option<Vec<u8>>)>);

    impl WriteBatchIterator for Seen {
        fn put(&mut self, key: &[u8], value: &[u8]) {
            self.0.push((key.to_vec(), Some(value.to_vec())));
        }

        fn delete(&mut self, key: &[u8]) {
            self.0.push((key.to_vec(), None));
        }
    }

    #[test]
    fn rows_come_in_the_order_of_their_keys_and_those_of_one_key_in_the_order_given() {
        let mut x: u64 = 1;
        let mut draw = |below: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) % below
        };
        for round in 0..200 {
            let mut rows = Rows::default();
            let mut model = Vec::new();
            // Keys of few letters, with zeros, of which some begin with others and some differ late.
            let common = vec![b'c'; draw(30) as usize];
            for number in 0..draw(60) {
                let mut key = vec![1 + draw(3) as u8];
                if round % 3 > 0 {
                    key.extend_from_slice(&common);
                }
                key.extend((0..draw(20)).map(|_| draw(2) as u8));
                let value = (draw(3) > 0).then(|| number.to_be_bytes()[..draw(9) as usize].to_vec());
                match &value {
                    Some(value) => rows.put(&key, value),
                    None => rows.delete(&key),
                }
                model.push((key, value));
            }
            model.sort_by(|one, other| one.0.cmp(&other.0));
            let mut seen = Seen::default();
            rows.into_batch().iterate(&mut seen);
            assert_eq!(seen.0, model);
        }
    }
}
