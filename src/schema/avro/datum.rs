//! The parts of an Avro binary datum: numbers, text, arrays; how each is read and written.
//!
//! Reading never accesses more than the given bytes, reserves no memory on the basis of a claimed length alone, and
//! names the field in each error. Text is borrowed. Writing cannot fail.

use crate::presence::Status;
use crate::schema::Malformed;
use crate::varint;

/// How many items are reserved at once: the length of the longest valid array.
const RESERVED_ITEMS_MAX: usize = crate::presence::event::bounds::BEATS.1;

/// Reads a datum field by field. `what` in its methods is the name of the field for error messages.
///
/// The first error is remembered. After it, nothing is left to read and every field is zero or empty, until
/// [`end`](Reader::end) returns the error. So the code that reads is straight-line code, and each field is returned in
/// registers. A `Result` for each field would be returned in memory, which took half as long again.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    error: Option<Malformed>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(datum: &'a [u8]) -> Reader<'a> {
        Reader {
            rest: datum,
            error: None,
        }
    }

    /// Returns the first error, if any. Bytes after the datum are an error: it was not written with the schema that it
    /// claims.
    #[inline]
    pub(super) fn end(self) -> Result<(), Malformed> {
        match (self.error, self.rest.len()) {
            (None, 0) => Ok(()),
            (Some(error), _) => Err(error),
            (None, extra) => Err(Malformed::invalid(format!("{extra} bytes too many at the end"))),
        }
    }

    /// Consumes these bytes if exactly they are left.
    #[inline]
    pub(super) fn end_after<const N: usize>(&mut self, bytes: [u8; N]) -> bool {
        let left = self.rest == bytes;
        if left {
            self.rest = &[];
        }
        left
    }

    #[cold]
    fn fail(&mut self, error: Malformed) {
        self.rest = &[];
        self.error.get_or_insert(error);
    }

    #[cold]
    pub(super) fn fail_with(&mut self, what: &str, trouble: &str) {
        // After the first error every field is missing, which is not worth reporting.
        if self.error.is_none() {
            self.fail(Malformed::invalid(format!("{what} {trouble}")));
        }
    }

    /// Reads an `int` or `long`: zigzag, seven bits per byte, least significant first, at most ten bytes.
    #[inline(always)]
    pub(super) fn long(&mut self, what: &'static str) -> i64 {
        if let [first, rest @ ..] = self.rest
            && *first < 0x80
        {
            self.rest = rest;
            return unzigzag(u64::from(*first));
        }
        self.long_of_many_bytes(what)
    }

    #[inline(never)]
    fn long_of_many_bytes(&mut self, what: &'static str) -> i64 {
        if let Some(value) = varint::take(&mut self.rest) {
            return unzigzag(value);
        }
        let ends_early = self.rest.len() < varint::BYTES_MAX;
        self.fail_with(
            what,
            if ends_early {
                ENDS_EARLY
            } else {
                "is a number of more than 64 bits"
            },
        );
        0
    }

    /// Reads a count or a time: 0…2^63−1.
    pub(super) fn count(&mut self, what: &'static str) -> u64 {
        let value = self.long(what);
        u64::try_from(value).unwrap_or_else(|_| {
            self.fail_with(what, &format!("must be 0 to {}, not {value}", i64::MAX));
            0
        })
    }

    /// Reads an `int` that is not negative.
    pub(super) fn int(&mut self, what: &'static str) -> u32 {
        match self.long(what) {
            value @ 0..=0x7fff_ffff => value as u32,
            value => {
                self.fail_with(what, &format!("must be 0 to {}, not {value}", i32::MAX));
                0
            }
        }
    }

    #[inline(always)]
    pub(super) fn bytes(&mut self, what: &'static str) -> &'a [u8] {
        let length = self.long(what);
        match usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length))
        {
            Some((bytes, rest)) => {
                self.rest = rest;
                bytes
            }
            None => {
                self.fail_with(
                    what,
                    if length < 0 {
                        "has a negative length"
                    } else {
                        ENDS_EARLY
                    },
                );
                &[]
            }
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "measured; see below")]
    pub(super) fn text(&mut self, what: &'static str) -> &'a str {
        let bytes = self.bytes(what);
        if bytes.is_ascii() {
            // Safety: ASCII is UTF-8. On text as short as ids, `from_utf8` works byte by byte; without it, a heartbeat
            // takes a third fewer instructions.
            return unsafe { std::str::from_utf8_unchecked(bytes) };
        }
        std::str::from_utf8(bytes).unwrap_or_else(|_| {
            self.fail_with(what, "is not UTF-8");
            ""
        })
    }

    /// Returns whether a nullable field, a union of null and one type, has a value.
    #[inline(always)]
    pub(super) fn present(&mut self, what: &'static str) -> bool {
        match self.long(what) {
            0 => false,
            1 => true,
            other => {
                self.fail_with(what, &format!("is of branch {other}, which its union does not have"));
                false
            }
        }
    }

    #[inline]
    pub(super) fn nullable_long(&mut self, what: &'static str) -> Option<i64> {
        self.present(what).then(|| self.long(what))
    }

    /// Reads a nullable `int`.
    pub(super) fn nullable_int(&mut self, what: &'static str) -> Option<i32> {
        let value = self.nullable_long(what)?;
        i32::try_from(value).map_or_else(
            |_| {
                self.fail_with(what, "is a number of more than 32 bits");
                None
            },
            Some,
        )
    }

    #[inline]
    pub(super) fn nullable_bytes(&mut self, what: &'static str) -> Option<&'a [u8]> {
        self.present(what).then(|| self.bytes(what))
    }

    #[inline]
    pub(super) fn nullable_text(&mut self, what: &'static str) -> Option<&'a str> {
        self.present(what).then(|| self.text(what))
    }

    /// Reads a status by its name.
    pub(super) fn status(&mut self, what: &'static str) -> Status {
        self.name(what, &Status::ALL, Status::name)
    }

    /// Reads one of `all` by its name.
    pub(super) fn name<T: Copy>(&mut self, what: &'static str, all: &[T], name: fn(T) -> &'static str) -> T {
        let text = self.text(what);
        all.iter().copied().find(|each| name(*each) == text).unwrap_or_else(|| {
            let names: Vec<_> = all.iter().map(|each| name(*each)).collect();
            self.fail_with(what, &format!("must be one of {}, not {text:?}", names.join(", ")));
            all[0]
        })
    }

    /// Reads an array. Calls `item` for each item with its index. An item has at least `item_bytes` ≥ 1 bytes, so a
    /// count that the remaining bytes cannot hold is an error before anything is reserved.
    pub(super) fn array<T>(
        &mut self,
        what: &'static str,
        item_bytes: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<T, Malformed>,
    ) -> Vec<T> {
        let mut items = Vec::new();
        loop {
            let count = self.long(what);
            if count < 0 {
                // The size of the block in bytes, by which a reader could skip it.
                self.count(what);
            }
            let fits = self.rest.len() / item_bytes;
            let count = match usize::try_from(count.unsigned_abs()) {
                Ok(0) => return items,
                Ok(count) if count <= fits => count,
                _ => {
                    self.fail_with(what, ENDS_EARLY);
                    return items;
                }
            };
            items.reserve(count.min(RESERVED_ITEMS_MAX));
            for _ in 0..count {
                match item(self, items.len()) {
                    Ok(item) if self.error.is_none() => items.push(item),
                    Ok(_) => return items,
                    Err(error) => {
                        self.fail(error);
                        return items;
                    }
                }
            }
        }
    }
}

const ENDS_EARLY: &str = "ends early";

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[inline]
pub(super) fn write_long(out: &mut Vec<u8>, value: i64) {
    varint::put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Writes a count or a time. All of ours are below 2^63: times are below 2^53 and spans at most ten years, offsets and
/// epochs have 63 bits, and counts start at 0 or 1.
pub(super) fn write_count(out: &mut Vec<u8>, value: u64) {
    let value = i64::try_from(value).expect("a number of the log is below 2^63");
    write_long(out, value);
}

pub(super) fn write_int(out: &mut Vec<u8>, value: u32) {
    let value = i32::try_from(value).expect("the number of a partition is below 2^31");
    write_long(out, i64::from(value));
}

#[inline]
pub(super) fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

#[inline]
pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    write_bytes(out, text.as_bytes());
}

const NULL: u8 = 0;
const SOMETHING: u8 = 2;

#[inline]
pub(super) fn write_nullable_long(out: &mut Vec<u8>, value: Option<i64>) {
    match value {
        None => out.push(NULL),
        Some(value) => {
            out.push(SOMETHING);
            write_long(out, value);
        }
    }
}

#[inline]
pub(super) fn write_nullable_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.push(NULL),
        Some(bytes) => {
            out.push(SOMETHING);
            write_bytes(out, bytes);
        }
    }
}

#[inline]
pub(super) fn write_nullable_text(out: &mut Vec<u8>, text: Option<&str>) {
    write_nullable_bytes(out, text.map(str::as_bytes));
}

/// Writes an array as one block.
pub(super) fn write_array<T>(out: &mut Vec<u8>, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        write_long(out, items.len() as i64);
        for each in items {
            item(out, each);
        }
    }
    out.push(0);
}

pub(super) fn write_nullable_array<T>(out: &mut Vec<u8>, items: Option<&[T]>, item: impl FnMut(&mut Vec<u8>, &T)) {
    match items {
        None => out.push(NULL),
        Some(items) => {
            out.push(SOMETHING);
            write_array(out, items, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(bytes: &[u8], field: impl FnOnce(&mut Reader<'_>) -> T) -> Result<T, String> {
        let mut reader = Reader::new(bytes);
        let value = field(&mut reader);
        reader.end().map(|()| value).map_err(|error| error.to_string())
    }

    #[test]
    fn every_width_of_a_number_is_read_as_it_was_written() {
        for shift in 0..64 {
            for value in [1_i64 << shift, (1_i64 << shift).wrapping_sub(1), (-1_i64) << shift] {
                let mut bytes = Vec::new();
                write_long(&mut bytes, value);
                assert!(bytes.len() <= 10);
                assert_eq!(read(&bytes, |reader| reader.long("n")), Ok(value));
            }
        }
    }

    #[test]
    fn a_number_that_ends_early_or_is_too_wide_is_an_error() {
        let error = |bytes: &[u8]| read(bytes, |reader| reader.long("n")).unwrap_err();
        assert_eq!(error(&[]), "n ends early");
        assert_eq!(error(&[0x80, 0x80]), "n ends early");
        assert_eq!(error(&[0xff; 10]), "n is a number of more than 64 bits");
        assert_eq!(
            error(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]),
            error(&[0xff; 10])
        );
    }

    #[test]
    fn a_claimed_length_beyond_the_end_is_an_error() {
        let mut claim = Vec::new();
        write_long(&mut claim, i64::MAX);
        claim.push(7);
        let items = |reader: &mut Reader<'_>| reader.array("a", 1, |reader, _| Ok(reader.long("item")));
        assert_eq!(
            read(&claim, |reader| reader.bytes("b").len()),
            Err("b ends early".to_owned())
        );
        assert_eq!(read(&claim, items), Err("a ends early".to_owned()));
        let mut negative = Vec::new();
        write_long(&mut negative, i64::MIN);
        assert_eq!(
            read(&negative, |reader| reader.bytes("b").len()),
            Err("b has a negative length".to_owned())
        );
        assert_eq!(read(&negative, items), Err("a ends early".to_owned()));
    }

    #[test]
    fn an_array_may_come_in_blocks_with_or_without_their_size() {
        let items = |reader: &mut Reader<'_>| reader.array("a", 1, |reader, i| Ok((i, reader.long("item"))));
        assert_eq!(read(&[2, 10, 3, 4, 12, 14, 0], items), Ok(vec![(0, 5), (1, 6), (2, 7)]));
        assert_eq!(read(&[2, 10], items), Err("a ends early".to_owned()));
        assert_eq!(read(&[4, 0x80, 0x80], items), Err("item ends early".to_owned()));
    }

    #[test]
    fn a_union_has_two_branches() {
        let number = |reader: &mut Reader<'_>| reader.nullable_long("n");
        assert_eq!(read(&[0], number), Ok(None));
        assert_eq!(read(&[2, 3], number), Ok(Some(-2)));
        for branch in [1, 4] {
            assert!(read(&[branch, 3], number).unwrap_err().starts_with("n is of branch"));
        }
    }

    #[test]
    fn text_is_utf_8() {
        let text = |bytes: &[u8]| read(bytes, |reader| reader.nullable_text("t").map(str::to_owned));
        assert_eq!(text(&[2, 4, 0xc3, 0xa9]), Ok(Some("é".to_owned())));
        assert_eq!(text(&[2, 2, 0xc3]), Err("t is not UTF-8".to_owned()));
    }

    #[test]
    fn the_first_error_is_told_and_nothing_is_read_after_it() {
        let two = read(&[4, 2, 6], |reader| {
            assert_eq!(reader.nullable_long("first"), None);
            assert_eq!(reader.text("second"), "");
        });
        assert_eq!(
            two,
            Err("first is of branch 2, which its union does not have".to_owned())
        );
        assert_eq!(
            read(&[2, 6], |reader| reader.long("only")),
            Err("1 bytes too many at the end".to_owned())
        );
    }
}
