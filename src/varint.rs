//! Numbers of variable length: unsigned LEB128, seven bits per byte, the least significant first. The upper bit of a byte
//! says that another one follows. Store, embedded log and Avro write numbers in this way.

/// The most bytes that a number takes.
pub const BYTES_MAX: usize = 10;

/// Appends a number.
#[inline]
pub fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front. Returns `None`, and takes nothing, if the bytes end within the number or it has more than 64
/// bits. It need not have its shortest form.
#[inline]
pub fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for (place, byte) in bytes.iter().take(BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room only for the last bit.
        if place == BYTES_MAX - 1 && bits > 1 {
            return None;
        }
        number |= bits << (7 * place);
        if *byte < 0x80 {
            *bytes = &bytes[place + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_as_it_was_written_and_nothing_else_is_a_number() {
        let edges = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        for number in edges.chain([u64::MAX]) {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            assert!(bytes.len() <= BYTES_MAX);
            bytes.push(7);
            let mut rest = &bytes[..];
            assert_eq!((take(&mut rest), rest), (Some(number), &[7u8][..]));
            for end in 0..bytes.len() - 1 {
                let mut rest = &bytes[..end];
                assert_eq!((take(&mut rest), rest.len()), (None, end));
            }
        }
        let too_many_bits = [[0xff; 9].as_slice(), &[2]].concat();
        assert_eq!(take(&mut too_many_bits.as_slice()), None);
        assert_eq!(take(&mut [0x80; 11].as_slice()), None);
        assert_eq!(take(&mut [0x80, 0].as_slice()), Some(0));
    }
}
