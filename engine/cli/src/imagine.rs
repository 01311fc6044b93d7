//! `ocelli imagine`: draws what a prompt asks for.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use ocelli_engine::Error;
use ocelli_engine::drawing::{self, DrawingParams, Drawn};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Rgb8Image, write_png};
use serde::Serialize;

use crate::args::ImagineArgs;
use crate::fail::{Failure, Outcome, print, print_json};
use crate::interrupt::{self, Gentle};
use crate::open;
use crate::progress::{Spinner, Steps};
use crate::run::peak_memory;

/// The picture where no name is given.
const UNNAMED: &str = "picture.png";

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    prompt: &'a str,
    prompt_tokens: usize,
    guidance: f32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    seed: u64,
    pictures: Vec<Picture<'a>>,
    backend: ocelli_kernels::Backend,
    device: &'a str,
    isa: &'static str,
    threads: usize,
    dtype: ocelli_kernels::DType,
    timings: Times,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Picture<'a> {
    file: String,
    width: usize,
    height: usize,
    token_ids: &'a [u32],
}

#[derive(Serialize)]
struct Times {
    load_ms: f64,
    prompt_ms: f64,
    tokens_ms: f64,
    pixels_ms: f64,
    total_ms: f64,
    tokens_per_s: f64,
    compile_ms: f64,
}

impl ImagineArgs {
    /// What is asked for, and what a model has it be where nothing is.
    fn params(&self, model: &DrawingParams) -> DrawingParams {
        DrawingParams {
            guidance: self.guidance.unwrap_or(model.guidance),
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            seed: self.seed,
            count: self.pictures,
        }
    }
}

/// Runs the command.
pub fn imagine(args: &ImagineArgs) -> Outcome {
    let start = Instant::now();
    args.params(&DrawingParams::default()).validate().map_err(|error| {
        Failure::usage(error.to_string())
            .hint("`ocelli imagine --help` lists the parameters with their ranges")
    })?;
    let names = match &args.out {
        Some(out) => names(out, args.pictures)?,
        None => free(names(Path::new(UNNAMED), args.pictures)?)?,
    };
    let files = open::painter_files(args.model.model.as_deref())?;
    draws(&files)?;
    let params = args.params(&DrawingParams::of(&files)?);
    let (device, precision) = open::device(&args.device)?;
    let spinner = Spinner::new("loading the model");
    let (pipeline, mut cx) = open::pipeline_of(&files, &args.model.setup(), &*device, precision)?;
    let painter = drawing::painter(&*pipeline.model)?;
    let guide = pipeline.guide(&args.prompt)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    drop(spinner);

    let canvas = painter.canvas();
    let gentle = Gentle::begin();
    let bar = Steps::new("tokens", canvas.tokens * params.count);
    let drawn = drawing::draw(&mut cx, &pipeline.model, &guide, &params, || {
        bar.advance(params.count);
        if gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(bar);
    let Drawn { codes, prompt, tokens } = match drawn {
        Err(Error::Cancelled) => return Ok(ExitCode::from(interrupt::code())),
        other => other?,
    };
    let before_pixels = Instant::now();
    let spinner = Spinner::new("painting");
    for (codes, name) in codes.iter().zip(&names) {
        let values = drawing::pixels(&mut cx, painter, codes)?;
        if gentle.asked() {
            return Ok(ExitCode::from(interrupt::code()));
        }
        let processor = pipeline.processor.drawing();
        let picture = processor.map(|processor| processor.picture(&values, canvas.width)).transpose()?;
        if let Some(picture) = picture {
            save(name, &picture)?;
        }
    }
    drop(spinner);
    let pixels = before_pixels.elapsed();

    if !args.json {
        return names
            .iter()
            .try_for_each(|name| print(&format!("{}\n", name.display())))
            .map(|()| ExitCode::SUCCESS);
    }
    let caps = device.caps();
    let pictures = names.iter().zip(&codes).map(|(name, codes)| Picture {
        file: name.display().to_string(),
        width: canvas.width,
        height: canvas.height,
        token_ids: codes,
    });
    print_json(&Output {
        schema: "ocelli.imagine.v1",
        model: args.model.model.as_deref().unwrap_or("demo painter"),
        prompt: &args.prompt,
        prompt_tokens: guide.with.len(),
        guidance: params.guidance,
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        seed: params.seed,
        pictures: pictures.collect(),
        backend: caps.backend,
        device: &caps.device,
        isa: caps.isa.name(),
        threads: caps.units,
        dtype: precision.dtype,
        timings: Times {
            load_ms,
            prompt_ms: prompt.as_secs_f64() * 1e3,
            tokens_ms: tokens.as_secs_f64() * 1e3,
            pixels_ms: pixels.as_secs_f64() * 1e3,
            total_ms: start.elapsed().as_secs_f64() * 1e3,
            tokens_per_s: (canvas.tokens * params.count) as f64 / tokens.as_secs_f64().max(1e-9),
            compile_ms: cx.compile_time().as_secs_f64() * 1e3,
        },
        peak_memory_bytes: peak_memory(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a model that does not draw before its weights are read.
fn draws(files: &ModelFiles) -> Result<(), Failure> {
    let found = ocelli_models::family(files)?.name;
    if ocelli_models::DRAW.contains(&found) {
        return Ok(());
    }
    let known = ocelli_models::DRAW.join(", ");
    let what = format!("expected one of a family that draws ({known}), found one of family {found}");
    Err(Failure::new(format!("--model: {what}")).hint("`ocelli run` answers questions about pictures"))
}

/// Names of the pictures: `out`, or of several `out` with numbers from 0 on before its ending. Errors if none could be written.
fn names(out: &Path, count: usize) -> Result<Vec<PathBuf>, Failure> {
    let png = out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    let Some(stem) = out.file_stem().filter(|_| png) else {
        let found = out.display();
        return Err(Failure::usage(format!("--out: expected a name that ends in .png, found {found}")));
    };
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Failure::new(format!("--out: {}: no such folder", folder.display())));
    }
    if count == 1 {
        return Ok(vec![out.to_owned()]);
    }
    let numbered = |number: usize| {
        let mut name = stem.to_owned();
        name.push(format!("-{number}.png"));
        out.with_file_name(name)
    };
    Ok((0..count).map(numbered).collect())
}

/// Names that nobody gave, if there are no such files.
fn free(names: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    match names.iter().find(|name| name.exists()) {
        Some(taken) => Err(Failure::new(format!("{}: there is one already", taken.display()))
            .hint("--out NAME.png names the picture")),
        None => Ok(names),
    }
}

/// Writes a picture; its file appears when all is written.
fn save(path: &Path, picture: &Rgb8Image) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = write_png(&part, picture).map_err(Failure::from).and_then(|()| {
        std::fs::rename(&part, path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::names;
    use std::path::Path;

    #[test]
    fn names_of_pictures() {
        let of = |out: &str, count| {
            let names = names(Path::new(out), count).map_err(|failure| failure.message().to_owned())?;
            Ok::<_, String>(names.iter().map(|name| name.display().to_string()).collect::<Vec<_>>())
        };
        assert_eq!(of("a.png", 1).unwrap(), ["a.png"]);
        assert_eq!(of("a.b.png", 2).unwrap(), ["a.b-0.png", "a.b-1.png"]);
        assert!(of("a.jpg", 1).unwrap_err().contains(".png"));
        assert!(of("png", 1).unwrap_err().contains(".png"));
        assert!(of("no-such-folder/a.png", 1).unwrap_err().contains("no such folder"));
    }
}
