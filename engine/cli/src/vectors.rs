//! What `embed` and `classify` share: lists of pictures, and vectors of them in batches.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ocelli_engine::image::{DecodeOptions, PreparedImage, decode_file};
use ocelli_engine::{Ctx, EmbeddingPipeline, Error};

use crate::args::VectorArgs;
use crate::fail::Failure;
use crate::interrupt::Gentle;
use crate::progress::Steps;

/// Ends of the names of files that are taken for pictures in a folder.
const PICTURES: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// Files as they are, folders as the pictures in them and below, in order of their names.
pub fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = all.len();
            below(path, &mut all).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
            if all.len() == before {
                let kinds = PICTURES.join(", ");
                return Err(Failure::new(format!("{}: no picture in this folder", path.display()))
                    .hint(format!("pictures in folders are known by the end of their name: {kinds}")));
            }
        } else {
            all.push(path.clone());
        }
    }
    Ok(all)
}

fn below(dir: &Path, all: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let end = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
        // A link to a folder may lead back up.
        if entry.file_type()?.is_dir() {
            below(&path, all)?;
        } else if end.is_some_and(|end| PICTURES.contains(&&*end)) && path.is_file() {
            all.push(path);
        }
    }
    Ok(())
}

/// What became of a picture: its vector, or why there is none.
pub type Vector = Result<Vec<f32>, Failure>;

/// Gives the vector of each picture, or why there is none, to `each` in order; the number of pictures without one.
pub fn of_pictures(
    args: &VectorArgs,
    pipeline: &EmbeddingPipeline,
    cx: &mut Ctx,
    pictures: &[PathBuf],
    mut each: impl FnMut(&Path, &Vector) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let (gentle, bar) = (Gentle::begin(), Steps::new("pictures", pictures.len()));
    let mut failed = 0;
    for paths in pictures.chunks(args.batch) {
        for (path, vector) in paths.iter().zip(batch(args, pipeline, cx, paths)) {
            if gentle.asked() {
                return Err(Failure::interrupted("interrupted"));
            }
            if let Err(failure) = &vector {
                failed += 1;
                bar.pause(|| failure.tell());
            }
            bar.pause(|| each(path, &vector))?;
        }
        bar.advance(paths.len());
    }
    Ok(failed)
}

/// The end of a command that did all but `failed` of `all` pictures.
pub fn end(failed: usize, all: usize) -> Result<(), Failure> {
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("{failed} of {all} pictures have no result")))
}

fn batch(args: &VectorArgs, pipeline: &EmbeddingPipeline, cx: &mut Ctx, paths: &[PathBuf]) -> Vec<Vector> {
    let prepared = prepare(args, pipeline, paths);
    let good: Vec<&PreparedImage> = prepared.iter().flatten().collect();
    // Whatever is wrong with one of them is not to be the end of all.
    let mut vectors = match pipeline.images(cx, &good) {
        Ok(vectors) => vectors.into_iter().map(Ok).collect(),
        Err(_) => good
            .iter()
            .map(|image| Ok(pipeline.images(cx, &[image])?.pop().unwrap_or_default()))
            .collect::<Vec<Result<_, Error>>>(),
    }
    .into_iter();
    let of = |(path, prepared): (&PathBuf, Result<PreparedImage, Error>)| match prepared {
        Err(error) => Err(error.into()),
        Ok(_) => vectors.next().unwrap_or(Ok(Vec::new())).map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(format!("{}: {}", path.display(), failure.message()))
        }),
    };
    paths.iter().zip(prepared).map(of).collect()
}

/// Reads and resizes pictures, several at a time.
fn prepare(
    args: &VectorArgs,
    pipeline: &EmbeddingPipeline,
    paths: &[PathBuf],
) -> Vec<Result<PreparedImage, Error>> {
    let options = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let workers = pipeline.threads.clamp(1, paths.len().max(1));
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(paths.len())));
    let work = || {
        while let Some((number, path)) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            paths.get(number).map(|path| (number, path))
        } {
            let threads = pipeline.threads.div_ceil(workers);
            let result = decode_file(path, &options)
                .map_err(Error::from)
                .and_then(|image| pipeline.processor.prepare(&image, threads));
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}
