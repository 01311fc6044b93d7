//! What `embed` and `classify` share: lists of pictures, and vectors of them in batches.

use std::path::{Path, PathBuf};

use ocelli_engine::image::{DecodeOptions, NAME_ENDS, PictureSource};
use ocelli_engine::{Ctx, EmbeddingPipeline};

use crate::args::VectorArgs;
use crate::fail::Failure;
use crate::interrupt::Gentle;
use crate::progress::Steps;

/// Files as they are, folders as the pictures in them and below, in order of their names.
pub fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = all.len();
            below(path, &mut all).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
            if all.len() == before {
                let kinds = NAME_ENDS.join(", ");
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
        } else if end.is_some_and(|end| NAME_ENDS.contains(&&*end)) && path.is_file() {
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
    let options = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let sources: Vec<_> = paths.iter().cloned().map(PictureSource::File).collect();
    let prepared = pipeline.read(&sources, &options);
    let read: Vec<bool> = prepared.iter().map(Result::is_ok).collect();
    let named = |((path, read), vector): ((&PathBuf, bool), ocelli_engine::Result<Vec<f32>>)| {
        vector.map_err(|error| {
            let failure = Failure::from(error);
            // What is wrong with a file names it.
            if read { Failure::new(format!("{}: {}", path.display(), failure.message())) } else { failure }
        })
    };
    paths.iter().zip(read).zip(pipeline.each(cx, prepared)).map(named).collect()
}
