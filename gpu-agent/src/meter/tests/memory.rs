//! Files in memory, of which writes fail as a test says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use vendue_receipts_store::{Files, UNFINISHED};

/// How much of a write is done before it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Nothing,
    Half,
    All,
}

/// Files in memory, of which a write can fail.
#[derive(Default)]
pub(super) struct Content {
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    pub writes: u64,
    /// The write that fails, how much of it is done, and whether all after it fail too.
    pub fail: Option<(u64, Done, bool)>,
}

#[derive(Default, Clone)]
pub(super) struct Memory(pub Rc<RefCell<Content>>);

impl Memory {
    fn write(&self, half: impl FnOnce(&mut Content), all: impl FnOnce(&mut Content)) -> io::Result<()> {
        let content = &mut *self.0.borrow_mut();
        content.writes += 1;
        let done = match content.fail {
            Some((at, done, _)) if content.writes == at => done,
            Some((at, _, true)) if content.writes > at => Done::Nothing,
            _ => {
                all(content);
                return Ok(());
            }
        };
        match done {
            Done::Nothing => {}
            Done::Half => half(content),
            Done::All => all(content),
        }
        Err(io::ErrorKind::StorageFull.into())
    }
}

impl Files for Memory {
    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.borrow().files.get(path).cloned())
    }
    fn append(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let put = |content: &mut Content, bytes: &[u8]| {
            let file = content.files.get_mut(path).unwrap();
            file.truncate(offset as usize);
            file.extend(bytes);
        };
        self.write(|c| put(c, &bytes[..bytes.len() / 2]), |c| put(c, bytes))
    }
    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let unfinished = path.with_file_name(UNFINISHED);
        let half = |c: &mut Content| _ = c.files.insert(unfinished, bytes[..bytes.len() / 2].to_vec());
        self.write(half, |c| _ = c.files.insert(path.to_owned(), bytes.to_vec()))
    }
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.write(|_| {}, |c| _ = c.files.remove(path))
    }
}
