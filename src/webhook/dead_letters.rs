//! The dead-letter file: callbacks that the receiver never accepted, one JSON line each.

use super::{Error, lock_alone};
use crate::layout;
use crate::presence::change::Change;
use crate::schema::json::Object;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

pub struct DeadLetterFile {
    path: PathBuf,
    /// Beyond it nothing is written any more.
    bytes_max: u64,
    /// Locked as long as this value lives.
    file: File,
    /// How much is in it.
    bytes: u64,
    /// How many callbacks this process has written.
    written: u64,
}

/// A callback that was given up.
#[derive(Debug)]
pub struct DeadLetter {
    line: Vec<u8>,
    id: String,
    user: Box<str>,
    why: String,
}

impl DeadLetter {
    pub fn new(change: &Change, body: &[u8], why: String) -> DeadLetter {
        let id = super::id(change);
        let mut line = Vec::new();
        Object::new(&mut line)
            .text("id", &id)
            .text("user", &change.user)
            .number("version", change.version)
            .text("why", &why)
            .raw("body", body)
            .end();
        line.push(b'\n');
        let user = change.user.clone();
        DeadLetter { line, id, user, why }
    }
}

impl DeadLetterFile {
    /// Opens the file for appending, up to so many bytes. Creates it if it does not exist. Appends nothing to a file of a
    /// later layout. Fails if another process has it: the bound counts what this process writes.
    pub fn open(path: &Path, bytes_max: u64) -> Result<DeadLetterFile, Error> {
        let file = layout::check_file(path).and_then(|()| File::options().create(true).append(true).open(path));
        let opened = file.and_then(|file| {
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        });
        let (file, bytes) = opened.map_err(|cause| Error::File {
            what: format!("cannot open the dead-letter file {}", path.display()),
            cause,
        })?;
        lock_alone(&file, &format!("dead-letter file {}", path.display()), "--dead-letters")?;
        Ok(DeadLetterFile {
            path: path.to_owned(),
            bytes_max,
            file,
            bytes,
            written: 0,
        })
    }

    /// Appends callbacks and syncs the file. Returns how many of them are in it now. Writes none that would make the file
    /// grow beyond its bound: it is not done then, and is posted again at the next start.
    pub fn write(&mut self, letters: &[&DeadLetter]) -> (usize, Result<(), Error>) {
        let mut lines = Vec::new();
        let fits = |letter: &&&DeadLetter| {
            let does_fit = self.bytes + (lines.len() + letter.line.len()) as u64 <= self.bytes_max;
            if does_fit {
                lines.extend_from_slice(&letter.line);
            }
            does_fit
        };
        let count = letters.iter().take_while(fits).count();
        if count > 0 {
            let written = self.file.write_all(&lines).and_then(|()| self.file.sync_data());
            if let Err(cause) = written {
                let what = format!("cannot write to the dead-letter file {}", self.path.display());
                return (0, Err(Error::File { what, cause }));
            }
        }
        self.bytes += lines.len() as u64;
        self.written += count as u64;
        for DeadLetter { line: _, id, user, why } in &letters[..count] {
            let change = id;
            tracing::error!(change, user, "gave up a callback, it is in the dead-letter file: {why}");
        }
        if count == letters.len() {
            return (count, Ok(()));
        }
        let full = Error::DeadLettersFull {
            path: self.path.clone(),
            bytes: self.bytes,
            bytes_max: self.bytes_max,
        };
        (count, Err(full))
    }

    /// Returns the sentence that says what of this process is in the file.
    pub fn holds(&self) -> String {
        let path = self.path.display();
        match self.written {
            0 => format!("none of them is in the dead-letter file {path}"),
            written => format!(
                "the {written} callbacks that were given up earlier, since the bridge was started, are in the dead-letter file \
                 {path} and are not posted again"
            ),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn letter(length: usize) -> DeadLetter {
        DeadLetter {
            line: vec![b'x'; length],
            id: "0-1-0".to_owned(),
            user: "alice".into(),
            why: "the receiver responded with 422".to_owned(),
        }
    }

    #[test]
    fn what_does_not_fit_is_not_written_and_what_comes_before_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("letters");
        let mut file = DeadLetterFile::open(&path, 10).expect("opened");
        assert!(file.holds().contains("none of them is in the dead-letter file"));
        let length = || std::fs::metadata(&path).expect("it is there").len();
        let letters = [letter(4), letter(4), letter(4), letter(1)];
        let (written, full) = file.write(&letters.each_ref());
        assert_eq!((written, length()), (2, 8));
        let full = full.expect_err("it is full").to_string();
        assert!(full.contains("letters has 8 bytes"), "{full}");
        assert!(file.holds().contains("the 2 callbacks"), "{}", file.holds());
        let (written, done) = file.write(&[]);
        done.expect("nothing to write");
        assert_eq!(written, 0);
        file.write(&[&letter(2)]).1.expect("it fits");
        assert_eq!(length(), 10);
    }
}
