//! `aborted.py` on files as a broker writes them: it finds an index of aborted transactions that ends too early, and only that.

use crate::python;
use crate::space::Space;
use std::path::Path;

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;
const HEADER_BYTES: usize = 61;

/// A batch of one record, as it lies on the disk. The checksum is not looked at.
fn batch(offset: u64, producer: i64, attributes: i16, record: &[u8]) -> Vec<u8> {
    let length = (HEADER_BYTES - 12 + record.len()) as i32;
    [
        &offset.to_be_bytes()[..],
        &length.to_be_bytes(),
        &0_i32.to_be_bytes(),
        &[2],
        &0_u32.to_be_bytes(),
        &attributes.to_be_bytes(),
        &0_i32.to_be_bytes(),
        &[0; 16],
        &producer.to_be_bytes(),
        &0_i16.to_be_bytes(),
        &0_i32.to_be_bytes(),
        &1_i32.to_be_bytes(),
        record,
    ]
    .concat()
}

/// The end of a transaction: its record has a key of a version and the kind.
fn marker(offset: u64, producer: i64, kind: i16) -> Vec<u8> {
    let record = [
        &[22, 0, 0, 0, 8][..],
        &0_i16.to_be_bytes(),
        &kind.to_be_bytes(),
        &[0, 0],
    ]
    .concat();
    batch(offset, producer, TRANSACTIONAL | CONTROL, &record)
}

/// Two transactions of producer 7 that are aborted, something else, and one of producer 8 that is committed. `stable` are the last
/// stable offsets in the index.
fn write(directory: &Path, stable: [u64; 2]) {
    let other = |offset, bytes| batch(offset, -1, 0, &vec![1; bytes]);
    let log = [
        batch(0, 7, TRANSACTIONAL, b"first"),
        marker(1, 7, ABORT),
        batch(2, 7, TRANSACTIONAL, b"second"),
        marker(3, 7, ABORT),
        other(4, 12_000),
        other(5, 6_000),
        batch(6, 8, TRANSACTIONAL, b"third"),
        marker(7, 8, COMMIT),
    ];
    let position: usize = log[..6].iter().map(Vec::len).sum();
    let indexed = [6_i32.to_be_bytes(), (position as i32).to_be_bytes()].concat();
    let entry = |first: u64, last: u64, stable: u64| {
        let numbers = [7, first, last, stable].map(u64::to_be_bytes).concat();
        [&0_i16.to_be_bytes()[..], &numbers].concat()
    };
    let index = [entry(0, 1, stable[0]), entry(2, 3, stable[1])].concat();
    let partition = directory.join("node-1/data/story.events-0");
    std::fs::create_dir_all(&partition).expect("made");
    for (ending, bytes) in [("log", log.concat()), ("index", indexed), ("txnindex", index)] {
        std::fs::write(partition.join(format!("00000000000000000000.{ending}")), bytes).expect("written");
    }
}

#[test]
fn what_a_replica_would_show_of_aborted_transactions_is_said() {
    let said = |stable| {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), stable);
        let space = Space {
            bootstrap: String::new(),
            prefix: "story".to_owned(),
            group: String::new(),
        };
        python::aborted(directory.path(), &space)
    };
    let right = said([2, 4]);
    assert!(
        right.contains("2 entries of aborted transactions, 0 of them") && right.contains("in 0 of "),
        "{right}"
    );
    // As a follower writes them that appends all of it at once.
    let wrong = said([6, 6]);
    assert!(
        wrong.contains("1 of them with too great a last stable offset")
            && wrong.contains("offset 2 of partition 0 by node-1 with answers of 16000 bytes"),
        "{wrong}"
    );
}
