//! The position up to which everything is done, and the file that stores it.

use super::dead_letters::DeadLetter;
use super::{Error, lock_alone};
use crate::layout;
use crate::presence::{Offset, Partition};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The next offset of the change topic in each partition; everything before it is done.
pub use crate::api::cursor::Cursor as Positions;

/// A place where the position is saved, from which a later process continues.
pub trait Keep: Send {
    fn keep(&mut self, positions: &Positions) -> Result<(), Error>;

    /// Saves the position for the last time. It is stored when this returns.
    fn keep_last(&mut self, positions: &Positions) -> Result<(), Error> {
        self.keep(positions)
    }
}

/// The changes in progress, by partition, in the order they were read. They end in any order; the position advances
/// over those that are done without a gap.
///
/// A change that was given up waits here until the position reaches it, and is written to the dead-letter file then. So
/// no change that a later process posts again is in that file, except after a crash within [`Keep`]'s interval.
#[derive(Default)]
pub struct Frontier {
    positions: Positions,
    under_way: BTreeMap<Partition, VecDeque<(Offset, Progress)>>,
    count: usize,
    moved: bool,
}

#[derive(Debug)]
enum Progress {
    UnderWay,
    Done,
    GivenUp(DeadLetter),
}

impl Frontier {
    /// Adds partitions that were not followed before.
    pub fn begin(&mut self, positions: Positions) {
        self.positions.0.extend(positions.0);
        self.moved = true;
    }

    /// Removes a partition. Returns how far it is done.
    pub fn end(&mut self, partition: Partition) -> Option<Offset> {
        self.count -= self.under_way.remove(&partition).map_or(0, |line| line.len());
        self.positions.0.remove(&partition)
    }

    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Returns how many changes have begun and are not before the position yet.
    pub fn under_way(&self) -> usize {
        self.count
    }

    pub fn begun(&mut self, partition: Partition, next: Offset) {
        let line = self.under_way.entry(partition).or_default();
        line.push_back((next, Progress::UnderWay));
        self.count += 1;
    }

    /// Records that a change has ended, in the dead letter if it was given up. [`Frontier::advance`] moves the position.
    pub fn done(&mut self, partition: Partition, next: Offset, letter: Option<DeadLetter>) {
        let Some(line) = self.under_way.get_mut(&partition) else {
            return;
        };
        // Entries are in order, so they can be searched.
        if let Ok(at) = line.binary_search_by_key(&next, |(next, _)| *next) {
            line[at].1 = letter.map_or(Progress::Done, Progress::GivenUp);
        }
    }

    /// Returns the dead letters that must be written before the position moves over all that has ended.
    pub fn letters(&self, partition: Partition) -> Vec<&DeadLetter> {
        let line = self.under_way.get(&partition).into_iter().flatten();
        let ended = line.take_while(|(_, progress)| !matches!(progress, Progress::UnderWay));
        let letters = ended.filter_map(|(_, progress)| match progress {
            Progress::GivenUp(letter) => Some(letter),
            Progress::UnderWay | Progress::Done => None,
        });
        letters.collect()
    }

    /// Moves the position over what has ended without a gap, and over at most so many dead letters: those that were
    /// written.
    pub fn advance(&mut self, partition: Partition, mut written: usize) {
        let Some(line) = self.under_way.get_mut(&partition) else {
            return;
        };
        while let Some((next, progress)) = line.front() {
            match progress {
                Progress::UnderWay => break,
                Progress::Done => {}
                Progress::GivenUp(_) if written == 0 => break,
                Progress::GivenUp(_) => written -= 1,
            }
            self.positions.0.insert(partition, *next);
            line.pop_front();
            self.count -= 1;
            self.moved = true;
        }
    }

    /// Returns the position if it has moved since the last call.
    pub fn moved(&mut self) -> Option<&Positions> {
        std::mem::take(&mut self.moved).then_some(&self.positions)
    }
}

/// The file that stores the position, for one process at a time.
pub struct PositionFile {
    path: PathBuf,
    /// Held as long as this value lives.
    _lock: File,
}

impl PositionFile {
    /// Opens the file and returns the position in it, if there is one. Fails if another process has it.
    pub fn open(path: &Path) -> Result<(PositionFile, Option<Positions>), Error> {
        let failed = |what: &str| {
            let what = format!("{what} {}", path.display());
            move |cause| Error::File { what, cause }
        };
        let beside = beside(path, "lock");
        let lock = File::create(&beside).map_err(failed("cannot create the lock of"))?;
        lock_alone(&lock, &format!("position file {}", path.display()), "--position")?;
        let file = PositionFile {
            path: path.to_owned(),
            _lock: lock,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((file, None)),
            Err(error) => return Err(failed("cannot read the position file")(error)),
        };
        layout::check(path, text.as_bytes()).map_err(|unknown| Error::Position(unknown.to_string()))?;
        let positions = Positions::parse(text.trim()).ok_or_else(|| {
            let message = format!(
                "{} does not contain a position; expected text such as 0:12,1:7",
                path.display()
            );
            Error::Position(message)
        })?;
        Ok((file, Some(positions)))
    }
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

impl Keep for PositionFile {
    /// Replaces the file atomically: after a crash it has either the old or the new content.
    fn keep(&mut self, positions: &Positions) -> Result<(), Error> {
        let write = || {
            let new = beside(&self.path, "new");
            let mut file = File::create(&new)?;
            writeln!(file, "{positions}")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|cause| Error::File {
            what: format!("cannot save the position in {}", self.path.display()),
            cause,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::dead_letters::tests::letter;
    use super::*;

    #[test]
    fn the_position_moves_past_what_is_done_without_a_gap() {
        let mut frontier = Frontier::default();
        frontier.begin(Positions::parse("0:3,1:0").expect("a position"));
        assert_eq!(frontier.moved().map(ToString::to_string).as_deref(), Some("0:3,1:0"));
        assert_eq!(frontier.moved(), None);
        for next in [4, 5, 9] {
            frontier.begun(Partition(0), Offset(next));
        }
        frontier.begun(Partition(1), Offset(1));
        let done = |frontier: &mut Frontier, partition, next| {
            frontier.done(Partition(partition), Offset(next), None);
            frontier.advance(Partition(partition), 0);
        };
        done(&mut frontier, 0, 9);
        done(&mut frontier, 0, 5);
        assert_eq!(frontier.moved(), None);
        assert_eq!(frontier.under_way(), 4);
        done(&mut frontier, 0, 4);
        assert_eq!(frontier.under_way(), 1);
        assert_eq!(frontier.moved().map(ToString::to_string).as_deref(), Some("0:9,1:0"));
        done(&mut frontier, 1, 1);
        assert_eq!(frontier.moved().map(ToString::to_string).as_deref(), Some("0:9,1:1"));
        // Removing a partition also removes its changes in progress.
        frontier.begun(Partition(1), Offset(2));
        frontier.begun(Partition(0), Offset(12));
        assert_eq!(frontier.end(Partition(1)), Some(Offset(1)));
        assert_eq!((frontier.under_way(), frontier.end(Partition(1))), (1, None));
        assert_eq!(frontier.positions().to_string(), "0:9");
    }

    #[test]
    fn a_dead_letter_is_due_when_the_position_reaches_it_and_holds_it_until_it_is_written() {
        let mut frontier = Frontier::default();
        frontier.begin(Positions::parse("0:0").expect("a position"));
        for next in 1..=4 {
            frontier.begun(Partition(0), Offset(next));
        }
        let give_up = |frontier: &mut Frontier, next| {
            frontier.done(Partition(0), Offset(next), Some(letter(4)));
        };
        give_up(&mut frontier, 2);
        give_up(&mut frontier, 4);
        assert!(frontier.letters(Partition(0)).is_empty());
        frontier.done(Partition(0), Offset(1), None);
        frontier.done(Partition(0), Offset(3), None);
        assert_eq!(frontier.letters(Partition(0)).len(), 2);
        frontier.advance(Partition(0), 1);
        assert_eq!(frontier.positions().to_string(), "0:3");
        assert_eq!(frontier.letters(Partition(0)).len(), 1);
        frontier.advance(Partition(0), 1);
        assert_eq!(
            (frontier.positions().to_string().as_str(), frontier.under_way()),
            ("0:4", 0)
        );
    }

    #[test]
    fn the_file_keeps_it_for_one_process_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("position");
        let (mut file, kept) = PositionFile::open(&path).expect("opened");
        assert_eq!(kept, None);
        let positions = Positions::parse("0:12,1:7").expect("a position");
        file.keep(&positions).expect("kept");
        let taken = PositionFile::open(&path).err().expect("it is in use").to_string();
        assert!(taken.contains("another process uses the position file"), "{taken}");
        drop(file);
        let (file, kept) = PositionFile::open(&path).expect("opened");
        assert_eq!(kept, Some(positions));
        drop(file);
        fs::write(&path, "nonsense\n").expect("written");
        let refused = PositionFile::open(&path).err().expect("refused").to_string();
        assert!(refused.contains("does not contain a position"), "{refused}");
    }
}
