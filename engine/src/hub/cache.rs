use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{HubConfig, HubId};

/// The directory of one model in the hub's usual cache:
///
/// ```text
/// models--OWNER--NAME/blobs/TAG                 content, named by its entity tag
///                     blobs/TAG.incomplete      content that is still arriving
///                     snapshots/COMMIT/FILE     a link to the content
///                     refs/REVISION             the commit that a branch or tag named last
/// .locks/models--OWNER--NAME/TAG.lock           held while content arrives
/// ```
pub(super) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub fn new(id: &HubId, config: &HubConfig) -> Self {
        let folder = format!("models--{}", id.repo().replace('/', "--"));
        Self { root: config.cache.join(&folder), locks: config.cache.join(".locks").join(folder) }
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn blob(&self, tag: &str) -> PathBuf {
        self.root.join("blobs").join(tag)
    }

    pub fn part(&self, tag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{tag}.incomplete"))
    }

    pub fn lock_path(&self, tag: &str) -> PathBuf {
        self.locks.join(format!("{tag}.lock"))
    }

    /// The commit that a revision named last.
    pub fn reference(&self, revision: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Notes which commit a revision names. Writes nothing where that is known.
    pub fn record(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit || self.reference(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        // Under another name first, so that nobody reads a half of it.
        let new = self.root.join(format!(".ref-{}", std::process::id()));
        std::fs::write(&new, commit)?;
        std::fs::rename(&new, &path).inspect_err(|_| drop(std::fs::remove_file(&new)))
    }

    /// Makes `pointer`, the file `name` of a snapshot, the content `tag`.
    pub fn link(&self, tag: &str, name: &str, pointer: &Path) -> io::Result<()> {
        create_parent(pointer)?;
        match std::fs::remove_file(pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let up = "../".repeat(2 + name.matches('/').count());
        match symlink(&Path::new(&up).join("blobs").join(tag), pointer) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && pointer.is_file() => Ok(()),
            // A file system without links.
            Err(_) => std::fs::copy(self.blob(tag), pointer).map(|_| ()),
            Ok(()) => Ok(()),
        }
    }

    /// Takes the lock of a content: `None` while another process has it. Released when dropped.
    pub fn try_lock(&self, tag: &str) -> io::Result<Option<Lock>> {
        let path = self.lock_path(tag);
        create_parent(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks.
            Err(TryLockError::Error(_)) => Ok(Some(Lock { _file: None })),
        }
    }
}

/// See [`Repository::try_lock`].
pub(super) struct Lock {
    _file: Option<File>,
}

pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

#[cfg(unix)]
fn symlink(target: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _pointer: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
