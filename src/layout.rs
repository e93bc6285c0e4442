//! Layout numbers of small files: a gateway's epoch and disconnect queue, a webhook bridge's position and dead letters.
//!
//! Every version so far has written layout 1, which has no number in the file. A file of a later layout begins with a line
//! `{"layout":N}`. A version that does not know the layout does not read the file, skips nothing in it, and leaves its bytes
//! as they are.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// The layout that this version writes, and the only one that it reads.
pub const NEWEST: u32 = 1;
/// The most bytes of a first line that are looked at. A number takes fewer.
const FIRST_LINE_BYTES_MAX: u64 = 4_096;

/// The file has a layout that this version does not know.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{} has layout {found}, but this version knows layouts up to {NEWEST}. The file is left as it is: start a version that \
     knows the layout",
    .file.display()
)]
pub struct UnknownLayout {
    file: PathBuf,
    found: String,
}

impl From<UnknownLayout> for io::Error {
    fn from(unknown: UnknownLayout) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, unknown)
    }
}

/// Checks the layout of a file's text, which may be its beginning alone.
pub fn check(file: &Path, text: &[u8]) -> Result<(), UnknownLayout> {
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let number = serde_json::from_slice::<serde_json::Value>(first).ok();
    match number.as_ref().and_then(|first| first.get("layout")) {
        None => Ok(()),
        Some(number) => Err(UnknownLayout {
            file: file.to_owned(),
            found: number.to_string(),
        }),
    }
}

/// Checks the layout of a file, which need not exist.
pub fn check_file(file: &Path) -> io::Result<()> {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut first = Vec::new();
    BufReader::new(opened)
        .take(FIRST_LINE_BYTES_MAX)
        .read_until(b'\n', &mut first)?;
    check(file, &first).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_line_with_a_number_is_of_another_layout() {
        let file = Path::new("epoch");
        for text in [
            "",
            "\n",
            "42\n",
            "0:12,1:7",
            "{\"offset\":0}\n{\"layout\":2}\n",
            "{\"layo",
        ] {
            assert_eq!(check(file, text.as_bytes()), Ok(()), "{text:?}");
        }
        for text in [
            "{\"layout\":2}",
            "{\"layout\":2}\n42\n",
            "{\"layout\":99999999999999,\"x\":[]}\n",
        ] {
            let refused = check(file, text.as_bytes()).expect_err("refused").to_string();
            assert!(refused.starts_with("epoch has layout "), "{refused}");
            assert!(refused.contains("start a version that knows the layout"), "{refused}");
        }
        let missing = tempfile::tempdir().expect("a directory").path().join("none");
        assert!(check_file(&missing).is_ok());
    }
}
