//! The file of an index.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ocelli_engine::VectorKind;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::{Deserialize, Serialize};

use crate::find::Matrix;
use crate::{Result, SearchError};

/// What SQLite's header has at the place for an application's number: `OCEL`.
const APPLICATION: i32 = 0x4f43_454c;
/// Number of the layout below.
const VERSION: i32 = 1;
/// Longest time that a process waits for another one that writes.
const PATIENCE: Duration = Duration::from_secs(20);

const LAYOUT: &str = "
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 0), text TEXT NOT NULL);
    CREATE TABLE vectors (
        hash BLOB PRIMARY KEY,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        vector BLOB NOT NULL
    );
    CREATE TABLE pictures (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER, hash BLOB NOT NULL);
    CREATE INDEX pictures_by_hash ON pictures (hash);";

/// What an index is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The model as a user names it: a directory, `OWNER/NAME@REVISION`, or `demo`.
    pub model: String,
    /// What tells it from others: `ocelli_engine::store::model_hash`.
    pub model_hash: String,
    /// Its family.
    pub family: String,
    /// What its vectors are.
    pub kind: VectorKind,
    /// Numbers of a vector.
    pub dimension: usize,
    /// Fields of the image processor that were set, in their order.
    pub processor: Vec<(String, String)>,
    /// The folder, as an absolute path.
    pub root: PathBuf,
}

/// An index that is open. Several processes may have one open at once.
pub struct Index {
    pub(crate) path: PathBuf,
    pub(crate) db: Connection,
    about: About,
}

impl Index {
    /// Opens an index to look something up.
    ///
    /// # Errors
    /// If there is none, if the file is something else or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::existing(path)
    }

    /// Opens an index to change it.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if it is not of `about`; the model's name may be another one.
    pub fn open_for(path: &Path, about: &About) -> Result<Self> {
        let mut index = Self::existing(path)?;
        index.is_of(about)?;
        let (old, new) = (&index.about.root, &about.root);
        if old != new && old.is_dir() {
            return Err(index.unlike("folder", &old.display().to_string(), &new.display().to_string()));
        }
        if index.about != *about {
            index.about = about.clone();
            let text = index.about_text()?;
            index.run(|db| db.execute("UPDATE about SET text = ?1", [text]))?;
        }
        Ok(index)
    }

    fn about_text(&self) -> Result<String> {
        let failed = |error: serde_json::Error| self.damaged(error.to_string());
        serde_json::to_string(&self.about).map_err(failed)
    }

    /// Makes an index, which appears under its name once it can be opened.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: &Path, about: &About) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let new = path.with_file_name(name);
        let _ = std::fs::remove_file(&new);
        let failed = |error| SearchError::database(&new, error);
        let db = Connection::open(&new).map_err(failed)?;
        let index = Self { path: new.clone(), db, about: about.clone() };
        let text = index.about_text()?;
        let make = |db: &Connection| -> rusqlite::Result<()> {
            db.execute_batch("BEGIN")?;
            db.execute_batch(LAYOUT)?;
            db.execute("INSERT INTO about VALUES (0, ?1)", [text])?;
            db.pragma_update(None, "application_id", APPLICATION)?;
            db.pragma_update(None, "user_version", VERSION)?;
            db.execute_batch("COMMIT")
        };
        make(&index.db).map_err(failed)?;
        drop(index);
        std::fs::rename(&new, path).map_err(|error| SearchError::io(path, error))?;
        Self::existing(path)
    }

    fn existing(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(SearchError::Missing(path.display().to_string()));
        }
        if path.is_dir() {
            return Err(foreign(path, "a folder"));
        }
        let failed = |error| SearchError::database(path, error);
        // What a killed process left half written is taken back by whoever comes next, readers too. A file that may not be written
        // is opened to be read all the same.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).map_err(failed)?;
        db.busy_timeout(PATIENCE).map_err(failed)?;
        let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let (application, version) =
            (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
        if application != APPLICATION {
            return Err(foreign(path, "another database"));
        }
        if version != VERSION {
            return Err(foreign(path, &format!("one of layout {version}, not {VERSION}")));
        }
        let text: Option<String> =
            db.query_row("SELECT text FROM about", [], |row| row.get(0)).optional().map_err(failed)?;
        let damaged = |reason: String| SearchError::Damaged { path: path.display().to_string(), reason };
        let text = text.ok_or_else(|| damaged("it does not say what it is of".into()))?;
        let about: About = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if about.dimension == 0 {
            return Err(damaged("vectors of no numbers".into()));
        }
        Ok(Self { path: path.to_owned(), db, about })
    }

    /// What it is of.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Errors if the index is of another model, or of the same one that sees pictures in another way.
    ///
    /// # Errors
    /// As said; the text names what differs.
    pub fn is_of(&self, about: &About) -> Result<()> {
        let ours = &self.about;
        if ours.model_hash != about.model_hash {
            let of = |about: &About| {
                format!("{} ({})", about.model, about.model_hash.get(..12).unwrap_or_default())
            };
            return Err(self.unlike("model", &of(ours), &of(about)));
        }
        let fields = |about: &About| {
            let fields: Vec<String> =
                about.processor.iter().map(|(key, value)| format!("{key}={value}")).collect();
            if fields.is_empty() { "those of its files".to_owned() } else { fields.join(" ") }
        };
        if ours.processor != about.processor {
            return Err(self.unlike("settings of the image processor", &fields(ours), &fields(about)));
        }
        if (ours.dimension, ours.kind) != (about.dimension, about.kind) {
            let of = |about: &About| format!("{} of {} numbers", about.kind, about.dimension);
            return Err(self.unlike("vectors", &of(ours), &of(about)));
        }
        Ok(())
    }

    fn unlike(&self, field: &'static str, expected: &str, found: &str) -> SearchError {
        let path = self.path.display().to_string();
        SearchError::Unlike { path, field, expected: expected.into(), found: found.into() }
    }

    pub(crate) fn damaged(&self, reason: impl Into<String>) -> SearchError {
        SearchError::Damaged { path: self.path.display().to_string(), reason: reason.into() }
    }

    pub(crate) fn run<R>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<R>) -> Result<R> {
        work(&self.db).map_err(|error| SearchError::database(&self.path, error))
    }

    /// Pictures that it has.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn len(&self) -> Result<usize> {
        let count: i64 =
            self.run(|db| db.query_row("SELECT count(*) FROM pictures", [], |row| row.get(0)))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Whether it has no picture.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The file of a picture.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.about.root.join(path)
    }

    /// All vectors in memory, in the order of their pictures' paths.
    ///
    /// # Errors
    /// If the file cannot be read, or has vectors that are none.
    pub fn matrix(&self) -> Result<Matrix> {
        let d = self.about.dimension;
        let mut matrix = Matrix::new(d);
        let rows = "SELECT path, width, height, vector FROM pictures JOIN vectors USING (hash) ORDER BY path";
        // Some(path) of the first row whose vector is none.
        let wrong = self.run(|db| {
            let mut statement = db.prepare(rows)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let path: String = row.get(0)?;
                let size = (row.get(1)?, row.get(2)?);
                let bytes = row.get_ref(3)?.as_blob().unwrap_or_default();
                if !matrix.push(&path, size, bytes) {
                    return Ok(Some(path));
                }
            }
            Ok(None)
        })?;
        if let Some(path) = wrong {
            return Err(self.damaged(format!("{path}: expected a vector of length 1 and {d} numbers")));
        }
        if matrix.len() != self.len()? {
            return Err(self.damaged("there are pictures without a vector"));
        }
        Ok(matrix)
    }

    /// A number that changes when another connection has changed the file.
    fn version(&self) -> Result<i64> {
        self.run(|db| db.pragma_query_value(None, "data_version", |row| row.get(0)))
    }
}

fn foreign(path: &Path, found: &str) -> SearchError {
    SearchError::Foreign { path: path.display().to_string(), found: found.into() }
}

/// An index that is asked again and again while others change it.
pub struct Live {
    about: About,
    state: Mutex<(Index, i64, Arc<Matrix>)>,
}

impl Live {
    /// Reads all of an index.
    ///
    /// # Errors
    /// As [`Index::matrix`].
    pub fn new(index: Index) -> Result<Self> {
        let version = index.version()?;
        let matrix = Arc::new(index.matrix()?);
        Ok(Self { about: index.about.clone(), state: Mutex::new((index, version, matrix)) })
    }

    /// What it is of.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Its vectors as they are now: they are read again where the file has changed.
    ///
    /// # Errors
    /// As [`Index::matrix`].
    pub fn matrix(&self) -> Result<Arc<Matrix>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let version = state.0.version()?;
        if version != state.1 {
            let matrix = state.0.matrix()?;
            (state.1, state.2) = (version, Arc::new(matrix));
        }
        Ok(state.2.clone())
    }
}
