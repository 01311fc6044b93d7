//! Calibration data of `ocelli quantize`: rows of pictures with questions.

use std::cell::RefCell;
use std::ops::ControlFlow;

use ocelli_engine::calibration::{At, Row, Rows};
use ocelli_engine::image::{DecodeOptions, PictureSource};
use ocelli_engine::text::Message;
use ocelli_engine::{Error, Pipeline, Result};
use serde_json::Value;

use crate::args::CalibrationArgs;
use crate::batch::{args::ColumnArgs, input};
use crate::fail::Failure;
use crate::interrupt::Gentle;
use crate::open;
use crate::progress::Steps;

/// A row: what it is called in errors, its pictures, and what is asked.
struct Asked {
    name: String,
    pictures: Vec<PictureSource>,
    prompt: String,
}

/// What is asked of a model.
pub struct Data<'a> {
    pipeline: &'a Pipeline,
    rows: Vec<Asked>,
    identity: String,
    gentle: &'a Gentle,
    /// The bar of what is done now.
    bar: RefCell<Option<(&'static str, usize, Steps)>>,
}

/// Reads the rows; their pictures are read when they are asked about.
fn read(args: &CalibrationArgs) -> Result<Vec<Asked>, Failure> {
    let rows = input::read_all(&args.calibrate, &ColumnArgs::default())?;
    let names: Vec<String> = args.calibrate.iter().map(|path| path.display().to_string()).collect();
    if rows.is_empty() {
        return Err(Failure::new(format!("--calibrate {}: no rows", names.join(" "))).hint(
            "pictures, folders of them, or JSON lines such as {\"image\": \"a.png\", \"prompt\": \"...\"}",
        ));
    }
    // Evenly from all of them.
    let (all, count) = (rows.len(), args.calibration_rows.min(rows.len()));
    let mut asked = Vec::with_capacity(count);
    for row in (0..count).map(|number| &rows[number * all / count]) {
        let text = ["prompt", "question"].iter().find_map(|name| match row.fields.get(*name) {
            Some(Value::String(text)) => Some(text.clone()),
            _ => None,
        });
        let prompt = match text {
            Some(text) => text,
            None if row.pictures.is_empty() => {
                return Err(Failure::new(format!(
                    "--calibrate: row `{}`: expected a picture or a prompt, found neither",
                    row.id
                )));
            }
            None => args.prompt.clone(),
        };
        let named = |failure: Failure| Failure::new(format!("row `{}`: {}", row.id, failure.message()));
        asked.push(Asked { name: row.id.clone(), pictures: row.sources().map_err(named)?, prompt });
    }
    Ok(asked)
}

impl<'a> Data<'a> {
    /// The rows that the arguments name, for a model.
    pub fn new(args: &CalibrationArgs, pipeline: &'a Pipeline, gentle: &'a Gentle) -> Result<Self, Failure> {
        let rows = read(args)?;
        let mut identity = format!("{:?}", args.processor);
        for Asked { pictures, prompt, .. } in &rows {
            identity.push_str(prompt);
            for picture in pictures {
                let file = match picture {
                    PictureSource::File(path) => std::fs::metadata(path).ok().map(|of| (path, of)),
                    _ => None,
                };
                match file {
                    Some((path, of)) => {
                        let time = of.modified().ok();
                        identity.push_str(&format!("{} {} {time:?}", path.display(), of.len()));
                    }
                    None => identity.push_str(&format!("{picture:?}")),
                }
            }
        }
        Ok(Self { pipeline, rows, identity, gentle, bar: RefCell::default() })
    }

    /// Puts the bar away.
    pub fn rest(&self) {
        self.bar.replace(None);
    }
}

impl Rows for Data<'_> {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn row(&self, number: usize) -> Result<Row> {
        let Asked { name, pictures, prompt } = &self.rows[number];
        let make = || -> Result<Row> {
            let images = open::read_pictures(pictures, &DecodeOptions::default())?;
            let images = self.pipeline.prepare(&images)?;
            let messages = [Message::user(images.len(), prompt.clone())];
            let prompt = self.pipeline.lay_out(&messages, &images.iter().collect::<Vec<_>>())?;
            Ok(Row { prompt, images })
        };
        make().map_err(|error| Error::Request(format!("row `{name}`: {error}")))
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn at(&self, At { what, done, all }: At) -> ControlFlow<()> {
        let mut bar = self.bar.borrow_mut();
        match &mut *bar {
            Some((of, before, steps)) if *of == what && *before <= done => {
                steps.advance(done - *before);
                *before = done;
            }
            other => *other = Some((what, done, Steps::new(&format!("calibration: {what}"), all))),
        }
        if self.gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
