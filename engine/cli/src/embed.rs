//! `ocelli embed`: vectors of pictures and texts.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ocelli_engine::VectorKind;
use serde::Serialize;

use crate::args::{EmbedArgs, VectorFormat};
use crate::fail::{Failure, Outcome, note};
use crate::progress::{Spinner, Steps};
use crate::{open, vectors};

/// Texts that are computed together.
const TEXTS: usize = 64;

/// One line of `--format jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// What the vector is, where it is not that of a dual encoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<VectorKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Runs the command: exit code 1 if any picture has no vector.
pub fn embed(args: &EmbedArgs) -> Outcome {
    if args.format == VectorFormat::Npy && args.out.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::usage("--format npy: expected --out FILE, or a pipe on standard output"));
    }
    let pictures = vectors::list(&args.pictures)?;
    let (device, precision) = open::device(&args.device)?;
    open::tell_vectors(args.vectors.model.as_deref());
    let spinner = Spinner::new("loading the model");
    let (pipeline, mut cx) = open::any_vectors(&args.vectors, &*device, precision)?;
    let tokens = args.texts.iter().map(|text| pipeline.tokens(text)).collect::<Result<Vec<_>, _>>()?;
    drop(spinner);
    let kind = (pipeline.kind != VectorKind::DualEncoder).then_some(pipeline.kind);
    if let Some(kind) = kind {
        let family = pipeline.model.info().family;
        note(&format!("vectors are {kind} of a {family} model, which gives texts none"));
    }

    let d = pipeline.model.info().d_model;
    let mut sink = Sink::new(args.out.as_deref())?;
    if args.format == VectorFormat::Npy {
        sink.write(&npy_header(pictures.len() + tokens.len(), d))?;
    }
    let mut write = |picture: Option<&Path>, text: Option<&str>, vector: Result<&[f32], &str>| {
        if args.format == VectorFormat::Npy {
            let nan = vec![f32::NAN; d];
            let values = vector.unwrap_or(&nan);
            return sink.write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        }
        let picture = picture.map(|path| path.display().to_string());
        let line = Line { picture, text, kind, vector: vector.ok(), error: vector.err() };
        sink.write(format!("{}\n", serde_json::to_string(&line)?).as_bytes())
    };
    let failed = vectors::of_pictures(&args.vectors, &pipeline, &mut cx, &pictures, |path, vector| {
        let vector = vector.as_ref().map(Vec::as_slice).map_err(Failure::message);
        write(Some(path), None, vector)
    })?;
    let bar = Steps::new("texts", tokens.len());
    for (texts, tokens) in args.texts.chunks(TEXTS).zip(tokens.chunks(TEXTS)) {
        for (text, vector) in texts.iter().zip(pipeline.texts(&mut cx, tokens)?) {
            write(None, Some(text), Ok(&vector))?;
        }
        bar.advance(texts.len());
    }
    drop(bar);
    sink.finish()?;
    vectors::end(failed, pictures.len())?;
    Ok(ExitCode::SUCCESS)
}

/// The head of a NumPy file of f32 `[rows, d]`: magic, version, length, and a dictionary that ends at a multiple of 64 bytes.
fn npy_header(rows: usize, d: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {d}), }}");
    let end = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(end - text.len() - 1));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Standard output, or a file that appears when all is written.
struct Sink {
    to: Box<dyn Write>,
    /// The file while it is written, and its name once it is whole.
    names: Option<(PathBuf, PathBuf)>,
}

impl Sink {
    fn new(out: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = out else { return Ok(Self { to: Box::new(std::io::stdout().lock()), names: None }) };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let file =
            File::create(&part).map_err(|error| Failure::new(format!("{}: {error}", part.display())))?;
        Ok(Self { to: Box::new(BufWriter::new(file)), names: Some((part, path.to_owned())) })
    }

    /// A reader of standard output that has gone away ends the program quietly.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self.to.write_all(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => other.map_err(|error| self.failed(&error)),
        }
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        let name =
            self.names.as_ref().map_or("standard output".into(), |(part, _)| part.display().to_string());
        Failure::new(format!("{name}: {error}"))
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.to.flush().map_err(|error| self.failed(&error))?;
        if let Some((part, path)) = self.names.take() {
            std::fs::rename(&part, &path)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.names {
            let _ = std::fs::remove_file(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::npy_header;

    #[test]
    fn heads_of_numpy_files() {
        for (rows, d) in [(0, 1), (3, 512), (123_456_789, 1152)] {
            let head = npy_header(rows, d);
            assert!(head.starts_with(b"\x93NUMPY\x01\x00") && head.len().is_multiple_of(64));
            assert_eq!(usize::from(u16::from_le_bytes([head[8], head[9]])), head.len() - 10);
            let text = std::str::from_utf8(&head[10..]).unwrap();
            assert!(text.contains(&format!("({rows}, {d})")) && text.ends_with('\n'), "{text}");
        }
    }
}
