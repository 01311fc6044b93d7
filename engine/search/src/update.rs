//! Making an index what its folder is.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ocelli_engine::image::{DecodeOptions, NAME_ENDS, PictureSource, PreparedImage};
use ocelli_engine::parallel::try_map;
use ocelli_engine::{Ctx, EmbeddingPipeline};
use rusqlite::params;
use serde::Serialize;

use crate::index::Index;
use crate::{Result, SearchError};

/// Files that were changed this short a time ago are read again next time: they may change once more within the clock's grain.
const FRESH: Duration = Duration::from_secs(2);

type Hash = [u8; 32];

/// How pictures are read.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Limits of decoding.
    pub decode: DecodeOptions,
    /// Pictures that are computed together, and written together.
    pub batch: usize,
}

/// What happens meanwhile.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many files are to be read.
    Begun(usize),
    /// So many more were.
    Done(usize),
    /// A picture has no vector: its path from the folder on, and why.
    Failed(&'a str, &'a str),
}

/// What was done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Pictures that the index has now.
    pub pictures: usize,
    /// Files that it did not have, whose content was not that of a file that is gone.
    pub new: usize,
    /// Files with another content than before.
    pub changed: usize,
    /// Files with the content of one that is gone.
    pub moved: usize,
    /// Files that are gone, those left out that were moved.
    pub removed: usize,
    /// Files as they were.
    pub unchanged: usize,
    /// Files that are no pictures that can be read; the index does not have them.
    pub failed: usize,
    /// Vectors that were computed: none for a content that the index has.
    pub computed: usize,
    /// Seconds.
    pub seconds: f64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pictures: {} new, {} changed, {} moved, {} removed, {} unchanged",
            self.pictures, self.new, self.changed, self.moved, self.removed, self.unchanged
        )?;
        if self.failed > 0 {
            write!(f, "; {} failed", self.failed)?;
        }
        let rate = if self.seconds > 0.0 { self.computed as f64 / self.seconds } else { 0.0 };
        write!(f, "; {} vectors in {:.1} s ({rate:.1}/s)", self.computed, self.seconds)
    }
}

/// A file of the folder.
struct File {
    /// From the folder on, with `/` between.
    path: String,
    size: i64,
    /// Nanoseconds since 1970; none where it cannot tell of changes.
    mtime: Option<i64>,
}

/// A file as the index has it.
struct Known {
    size: i64,
    mtime: Option<i64>,
    hash: Hash,
}

/// What reading a file gave.
enum Read {
    /// A content that has a vector, or is about to have one.
    Seen(Hash),
    /// Another one, with its width and height.
    New(Hash, (usize, usize), Box<PreparedImage>),
    /// Nothing; of a content, if that could be read.
    Failed(Option<Hash>, String),
}

/// Makes an index what its folder is: files are looked into whose size or time has changed, and vectors are computed of contents that it does
/// not have. What was done until the process ends, however that happens, is there the next time.
///
/// # Errors
/// If the folder cannot be read, the index not be written, or `watch` breaks: [`SearchError::Interrupted`].
pub fn update(
    index: &mut Index,
    pipeline: &EmbeddingPipeline,
    cx: &mut Ctx,
    settings: &Settings,
    watch: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report> {
    let start = Instant::now();
    let mut report = Report::default();
    let root = index.about().root.clone();
    let (files, odd) = files(&root)?;
    let mut tell = |progress: Progress<'_>| match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SearchError::Interrupted),
    };
    let known = known(index)?;
    let mut vectors = hashes(index)?;
    let there: HashSet<&str> = files.iter().map(|file| &*file.path).collect();
    let mut gone: HashMap<Hash, usize> = HashMap::new();
    for (_, known) in known.iter().filter(|(path, _)| !there.contains(path.as_str())) {
        *gone.entry(known.hash).or_default() += 1;
        report.removed += 1;
    }
    let (same, open): (Vec<_>, Vec<_>) = files.iter().partition(|file| {
        known.get(&file.path).is_some_and(|known| {
            known.mtime.is_some()
                && (known.size, known.mtime) == (file.size, file.mtime)
                && vectors.contains(&known.hash)
        })
    });
    report.unchanged = same.len();
    tell(Progress::Begun(open.len()))?;
    for name in &odd {
        report.failed += 1;
        tell(Progress::Failed(name, "the name is not UTF-8"))?;
    }

    // Files are read while the model computes those before them.
    let (sender, reads) = sync_channel(1);
    let mut broken: HashMap<Hash, String> = HashMap::new();
    let coming = vectors.clone();
    std::thread::scope(|scope| -> Result<()> {
        let (open, root) = (&open, &root);
        scope.spawn(move || {
            let mut coming = coming;
            for files in open.chunks(settings.batch.max(1)) {
                let read = read(root, files, pipeline, settings, &mut coming);
                if sender.send(read).is_err() {
                    return;
                }
            }
        });
        for files in open.chunks(settings.batch.max(1)) {
            let Ok(read) = reads.recv() else { break };
            let batch = Batch { index: &*index, pipeline, files, read };
            let failed = batch.write(cx, &known, &mut gone, &mut vectors, &mut broken, &mut report)?;
            for (path, why) in failed {
                tell(Progress::Failed(&path, &why))?;
            }
            tell(Progress::Done(files.len()))?;
        }
        // Ends the thread.
        drop(reads);
        Ok(())
    })?;
    forget(index, &there)?;
    report.pictures = index.len()?;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// The pictures in a folder and below, by the ends of their names, in order of their paths; and names that cannot be told.
fn files(root: &Path) -> Result<(Vec<File>, Vec<String>)> {
    let (mut files, mut odd) = (Vec::new(), Vec::new());
    let now = SystemTime::now();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |error| SearchError::io(&folder, error);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            // A link to a folder may lead back up.
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(path);
                continue;
            }
            let end = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
            if !end.is_some_and(|end| NAME_ENDS.contains(&&*end)) {
                continue;
            }
            // One that goes meanwhile is not there.
            let Ok(facts) = std::fs::metadata(&path) else { continue };
            if !facts.is_file() {
                continue;
            }
            let inner = path.strip_prefix(root).unwrap_or(&path);
            let parts: Option<Vec<&str>> = inner.iter().map(std::ffi::OsStr::to_str).collect();
            let Some(parts) = parts else {
                odd.push(inner.to_string_lossy().into_owned());
                continue;
            };
            let modified =
                facts.modified().ok().filter(|&time| now.duration_since(time).is_ok_and(|age| age >= FRESH));
            let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            files.push(File {
                path: parts.join("/"),
                size: i64::try_from(facts.len()).unwrap_or(i64::MAX),
                mtime: since.and_then(|time| i64::try_from(time.as_nanos()).ok()),
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    odd.sort();
    Ok((files, odd))
}

fn known(index: &Index) -> Result<HashMap<String, Known>> {
    let mut known = HashMap::new();
    let whole = index.run(|db| {
        let mut statement = db.prepare("SELECT path, size, mtime, hash FROM pictures")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let Ok(hash) = Hash::try_from(row.get_ref(3)?.as_blob().unwrap_or_default()) else {
                return Ok(false);
            };
            known.insert(row.get(0)?, Known { size: row.get(1)?, mtime: row.get(2)?, hash });
        }
        Ok(true)
    })?;
    if whole { Ok(known) } else { Err(index.damaged("a hash of a picture is not 32 bytes")) }
}

fn hashes(index: &Index) -> Result<HashSet<Hash>> {
    let length = 4 * index.about().dimension as i64;
    index.run(|db| {
        // What is no vector is made again.
        let mut statement = db.prepare("SELECT hash FROM vectors WHERE length(vector) = ?1")?;
        let mut rows = statement.query([length])?;
        let mut all = HashSet::new();
        while let Some(row) = rows.next()? {
            all.extend(Hash::try_from(row.get_ref(0)?.as_blob().unwrap_or_default()));
        }
        Ok(all)
    })
}

/// Reads files, and prepares those whose content is not one of `coming`, to which it adds them.
fn read(
    root: &Path,
    files: &[&File],
    pipeline: &EmbeddingPipeline,
    settings: &Settings,
    coming: &mut HashSet<Hash>,
) -> Vec<Read> {
    let bytes = |file: &&File, _| {
        let bytes = std::fs::read(root.join(&file.path)).map_err(|error| error.to_string());
        Ok::<_, std::convert::Infallible>(bytes.map(|bytes| (Hash::from(blake3::hash(&bytes)), bytes)))
    };
    let contents = try_map(files, pipeline.threads, bytes).unwrap_or_default();
    let wanted: Vec<bool> =
        contents.iter().map(|content| content.as_ref().is_ok_and(|(hash, _)| coming.insert(*hash))).collect();
    let all: Vec<_> = files.iter().zip(contents).zip(wanted).collect();
    let all: Vec<_> = all
        .into_iter()
        .map(|((file, content), wanted)| {
            content.map(|(hash, bytes)| {
                (hash, wanted.then(|| PictureSource::Bytes(file.path.clone(), bytes.into())))
            })
        })
        .collect();
    let prepare = |content: &std::result::Result<(Hash, Option<PictureSource>), String>, threads| {
        let read = match content {
            Err(why) => Read::Failed(None, why.clone()),
            Ok((hash, None)) => Read::Seen(*hash),
            Ok((hash, Some(source))) => {
                let image = source.decode(&settings.decode).map_err(ocelli_engine::Error::from);
                let prepared = image.and_then(|image| {
                    let size = (image.width(), image.height());
                    Ok((size, pipeline.processor.prepare(&image, threads)?))
                });
                match prepared {
                    Ok((size, prepared)) => Read::New(*hash, size, Box::new(prepared)),
                    Err(error) => Read::Failed(Some(*hash), error.to_string()),
                }
            }
        };
        Ok::<_, std::convert::Infallible>(read)
    };
    try_map(&all, pipeline.threads, prepare).unwrap_or_default()
}

/// Files that were read together.
struct Batch<'a> {
    index: &'a Index,
    pipeline: &'a EmbeddingPipeline,
    files: &'a [&'a File],
    read: Vec<Read>,
}

impl Batch<'_> {
    /// Computes what is new, and writes all in one step; gives the files that failed, with the reasons.
    fn write(
        self,
        cx: &mut Ctx,
        known: &HashMap<String, Known>,
        gone: &mut HashMap<Hash, usize>,
        vectors: &mut HashSet<Hash>,
        broken: &mut HashMap<Hash, String>,
        report: &mut Report,
    ) -> Result<Vec<(String, String)>> {
        let (mut prepared, mut contents, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows: Vec<(&File, Option<Hash>)> = Vec::new();
        for (&file, read) in self.files.iter().zip(self.read) {
            rows.push((
                file,
                match read {
                    Read::Seen(hash) => Some(hash),
                    Read::New(hash, size, image) => {
                        prepared.push(Ok(*image));
                        contents.push((hash, size));
                        Some(hash)
                    }
                    Read::Failed(hash, why) => {
                        broken.extend(hash.map(|hash| (hash, why.clone())));
                        failed.push((file.path.clone(), why));
                        None
                    }
                },
            ));
        }
        let mut made = Vec::new();
        for ((hash, size), vector) in contents.into_iter().zip(self.pipeline.each(cx, prepared)) {
            match vector {
                Ok(vector) => {
                    vectors.insert(hash);
                    made.push((hash, size, vector));
                }
                Err(error) => drop(broken.insert(hash, error.to_string())),
            }
        }
        report.computed += made.len();
        for (file, hash) in &mut rows {
            let Some(content) = hash.filter(|hash| !vectors.contains(hash)) else { continue };
            let why = broken.get(&content).cloned().unwrap_or_default();
            failed.push((file.path.clone(), why));
            *hash = None;
        }
        self.index.run(|db| {
            // Dropped without a commit it is taken back.
            let change = db.unchecked_transaction()?;
            let mut vector_row =
                db.prepare_cached("INSERT OR REPLACE INTO vectors VALUES (?1, ?2, ?3, ?4)")?;
            for (hash, (width, height), vector) in &made {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                vector_row.execute(params![hash.as_slice(), *width as i64, *height as i64, bytes])?;
            }
            let mut row = db.prepare_cached("INSERT OR REPLACE INTO pictures VALUES (?1, ?2, ?3, ?4)")?;
            let mut none = db.prepare_cached("DELETE FROM pictures WHERE path = ?1")?;
            for (file, hash) in &rows {
                match hash {
                    Some(hash) => row.execute(params![file.path, file.size, file.mtime, hash.as_slice()])?,
                    None => none.execute(params![file.path])?,
                };
            }
            change.commit()
        })?;
        for (file, hash) in rows {
            let Some(hash) = hash else {
                report.failed += 1;
                continue;
            };
            match known.get(&file.path) {
                Some(known) if known.hash == hash => report.unchanged += 1,
                Some(_) => report.changed += 1,
                None => match gone.get_mut(&hash).filter(|left| **left > 0) {
                    Some(left) => {
                        *left -= 1;
                        report.moved += 1;
                        report.removed -= 1;
                    }
                    None => report.new += 1,
                },
            }
        }
        Ok(failed)
    }
}

/// Removes files that are not there, and contents that no file has.
fn forget(index: &Index, there: &HashSet<&str>) -> Result<()> {
    index.run(|db| {
        let change = db.unchecked_transaction()?;
        let mut statement = db.prepare("SELECT path FROM pictures")?;
        let paths =
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut none = db.prepare_cached("DELETE FROM pictures WHERE path = ?1")?;
        for path in paths.iter().filter(|path| !there.contains(path.as_str())) {
            none.execute([path])?;
        }
        db.execute("DELETE FROM vectors WHERE hash NOT IN (SELECT hash FROM pictures)", [])?;
        change.commit()
    })
}
