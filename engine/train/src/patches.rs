//! Pictures with hidden patches, whose pixels or features a tower learns to tell.
//!
//! A hidden patch is gray: its values are zero after normalization, the mean that pictures were normalized by. From the row that the
//! tower gives for its place, a linear head of its own tells what was there: the pixels, normalized by their mean and deviation within the
//! patch (He et al., "Masked autoencoders are scalable vision learners", 2022), or the teacher's features of the place. Only hidden patches
//! have a loss.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Pixels, PreparedImage, Tile};
use ocelli_engine::vlm::Model;
use ocelli_engine::{Ctx, Error, Processor, Result, Stage, Tensor};
use ocelli_kernels::ops::{GatherRows, Matmul};
use ocelli_kernels::{DType, Weights};
use serde_json::Value;

use crate::augment::{Augment, prepared};
use crate::data::TrainRow;
use crate::distill::squared_error;
use crate::learner::{Checked, Draw, Learner, Loss};
use crate::parameters::{Parameters, download};
use crate::random::Random;

/// Names of the head's parameters begin so.
pub const HEAD: &str = "masked_head.";

/// Added to variances of patches.
const EPS: f64 = 1e-6;

/// A row: its pictures with hidden patches.
pub struct Hidden {
    /// The pictures, gray where patches are hidden.
    shown: Vec<Arc<PreparedImage>>,
    /// As the teacher sees them, whole.
    whole: Vec<Arc<PreparedImage>>,
    /// Tile, counted over all pictures, and number within it of each hidden patch.
    places: Vec<(usize, usize)>,
    /// Their normalized pixels, `[places, 3 * patch^2]`; none where features are told.
    pixels: Vec<f32>,
}

/// Makes such rows.
pub struct Hider<'a> {
    /// The student's processor.
    pub processor: &'a dyn Processor,
    /// The teacher's, where features are told.
    pub teacher: Option<&'a dyn Processor>,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Share of the patches of each tile that is hidden.
    pub share: f64,
    /// How pictures are changed before.
    pub augment: Augment,
}

/// The side of the patches that a model's tower takes, as its configuration says.
///
/// # Errors
/// If it says none, or the tower's rows are not its patches, row by row.
pub fn patch_side(files: &ModelFiles, family: &str) -> Result<usize> {
    let config: Value = files.require_json("config.json")?;
    let places = ["/vision_config/patch_size", "/vision_config/vision_config/patch_size", "/patch_size"];
    let side = places.into_iter().find_map(|place| config.pointer(place)?.as_u64());
    let wrong = |reason: String| Error::Config { path: files.describe("config.json"), reason };
    if OTHERWISE.contains(&family) {
        return Err(wrong(format!(
            "the tower of models of family {family} takes patches in another order than row by row: hidden patches are not learnt there"
        )));
    }
    let side = side.filter(|side| *side > 0).map(|side| side as usize);
    side.ok_or_else(|| wrong("vision_config.patch_size: expected a number above 0".into()))
}

/// Families whose connectors order the patches of the tower.
const OTHERWISE: [&str; 10] = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "glm4v",
    "glm46v",
    "glm_ocr",
    "minicpmv4_6",
];

/// Patches of a tile down and across.
fn grid(tile: &Tile, patch: usize) -> (usize, usize) {
    (tile.height / patch, tile.width / patch)
}

impl Hider<'_> {
    /// A row; the same patches are hidden each time where nothing is drawn.
    ///
    /// # Errors
    /// If it has no picture, or one cannot be read.
    pub fn read(&self, row: &TrainRow, draw: Option<Draw>) -> Result<Hidden> {
        let images = self.augment.pictures(row, draw)?;
        if images.is_empty() {
            return Err(Error::Train("expected a picture, found none".into()));
        }
        let mut random = Random::of(draw.unwrap_or(Draw { seed: 0, epoch: 0, line: row.line }));
        // What augmentation has drawn is no part of it.
        random = Random::new(!random.bits());
        let mut hidden = Hidden {
            shown: Vec::with_capacity(images.len()),
            whole: self.teacher.map_or(Ok(Vec::new()), |teacher| prepared(teacher, &images))?,
            places: Vec::new(),
            pixels: Vec::new(),
        };
        let mut number = 0;
        for picture in prepared(self.processor, &images)? {
            let mut shown = (*picture).clone();
            for tile in &mut shown.tiles {
                self.hide(tile, &picture, number, &mut random, &mut hidden)?;
                number += 1;
            }
            hidden.shown.push(Arc::new(shown));
        }
        Ok(hidden)
    }

    /// Hides patches of a tile.
    fn hide(
        &self,
        tile: &mut Tile,
        picture: &PreparedImage,
        number: usize,
        random: &mut Random,
        hidden: &mut Hidden,
    ) -> Result<()> {
        let (height, width, side) = (tile.height, tile.width, self.patch);
        if tile.frames() != 1 || !height.is_multiple_of(side) || !width.is_multiple_of(side) {
            return Err(Error::Train(format!(
                "a tile of {height} x {width} pixels does not fall into patches of {side} x {side}"
            )));
        }
        let mut values = Vec::with_capacity(3 * height * width);
        tile.write_values(&picture.normalize, &mut values);
        let (rows, cols) = grid(tile, side);
        let count = ((rows * cols) as f64 * self.share).round() as usize;
        for patch in random.choose(count.max(1), rows * cols) {
            let (top, left) = (patch / cols * side, patch % cols * side);
            let places = (0..3).flat_map(|channel| {
                (top..top + side)
                    .flat_map(move |y| (left..left + side).map(move |x| (channel * height + y) * width + x))
            });
            let places: Vec<usize> = places.collect();
            if self.teacher.is_none() {
                let own: Vec<f32> = places.iter().map(|&place| values[place]).collect();
                hidden.pixels.extend(normalized(&own));
            }
            places.iter().for_each(|&place| values[place] = 0.0);
            hidden.places.push((number, patch));
        }
        tile.pixels = Pixels::F32(values);
        Ok(())
    }
}

/// Values about their mean, in units of their deviation.
fn normalized(values: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let mean_of = |of: &dyn Fn(f64) -> f64| {
        values.iter().map(|&value| of(f64::from(value))).sum::<f64>() / values.len().max(1) as f64
    };
    let mean = mean_of(&|value| value);
    let deviation = (mean_of(&|value| (value - mean) * (value - mean)) + EPS).sqrt();
    values.iter().map(move |&value| ((f64::from(value) - mean) / deviation) as f32)
}

/// Runs a model's tower and keeps what it gives; the rest of what makes features runs too.
///
/// # Errors
/// If the model cannot run the pictures, or shows no result of a tower.
pub fn tower(cx: &mut Ctx, model: &Model, pictures: &[&PreparedImage]) -> Result<Vec<Tensor>> {
    let before = cx.keep(Some(Stage::TOWER));
    debug_assert!(before.is_empty());
    let ran = match model {
        Model::Vlm(model) => model.encode(cx, pictures).map(drop),
        Model::Embedder(model) => model.images(cx, pictures).map(drop),
    };
    let kept = cx.keep(None);
    ran?;
    if kept.is_empty() {
        return Err(Error::Train(
            "the model's tower shows no result of its own: hidden patches are not learnt there".into(),
        ));
    }
    Ok(kept)
}

/// How wide the rows of a model's tower are, by a pass that computes nothing.
///
/// # Errors
/// As [`tower`].
pub fn tower_width(cx: &mut Ctx, model: &Model, processor: &dyn Processor) -> Result<usize> {
    let gray = ocelli_engine::image::Rgb8Image::from_raw(64, 64, vec![128; 64 * 64 * 3]);
    let gray = gray.ok_or_else(|| Error::Request("a gray picture cannot be made".into()))?;
    let (mut dry, _) = Ctx::dry(cx.stream().caps().clone(), cx.precision());
    let kept = tower(&mut dry, model, &[&processor.prepare(&gray, 1)?])?;
    kept.first().map(|rows| rows.size(1)).ok_or_else(|| Error::Train("the tower gives no rows".into()))
}

/// The tower's rows of hidden patches, `[places, d]`.
fn rows_of(
    cx: &mut Ctx,
    kept: &[Tensor],
    pictures: &[Arc<PreparedImage>],
    places: &[(usize, usize)],
    patch: usize,
) -> Result<Tensor> {
    let tiles = pictures.iter().flat_map(|picture| &picture.tiles).map(|tile| grid(tile, patch));
    let tiles: Vec<usize> = tiles.map(|(rows, cols)| rows * cols).collect();
    let (all, patches): (usize, usize) = (kept.iter().map(|rows| rows.size(0)).sum(), tiles.iter().sum());
    // Rows such as that of a class token, before the patches of each tile.
    let extra = all.checked_sub(patches).filter(|extra| extra.is_multiple_of(tiles.len().max(1)));
    let extra = extra.ok_or_else(|| {
        Error::Train(format!(
            "the tower gives {all} rows for {patches} patches in {} tiles: they are not its patches",
            tiles.len()
        ))
    })? / tiles.len().max(1);
    let mut starts = Vec::with_capacity(tiles.len());
    let mut end = 0;
    for patches in tiles {
        starts.push(end + extra);
        end += extra + patches;
    }
    let d = kept.first().map_or(0, |rows| rows.size(1));
    let out = cx.alloc(&[places.len(), d], DType::F32)?;
    let (mut first, mut done) = (0, 0);
    for rows in kept {
        let here = first..first + rows.size(0);
        // Places ascend, tile by tile.
        let ids = places[done..].iter().map(|&(tile, patch)| starts[tile] + patch);
        let ids: Vec<i32> =
            ids.take_while(|id| here.contains(id)).map(|id| (id - here.start) as i32).collect();
        if !ids.is_empty() {
            let table = Weights::dense(cx.view(rows)?, None)?;
            let to = out.narrow(0, done, ids.len())?;
            done += ids.len();
            let ids = cx.upload(&[ids.len()], &ids)?;
            cx.exec(
                "hidden patches",
                &GatherRows { table, ids: cx.view(&ids)?, scale: 1.0, out: cx.view(&to)? },
            )?;
        }
        first = here.end;
    }
    if done < places.len() {
        return Err(Error::Train("the tower gives no row for a hidden patch".into()));
    }
    Ok(out)
}

/// A teacher of features.
pub struct FeatureTeacher {
    /// The model.
    pub model: Model,
    /// Its context.
    pub cx: Ctx,
    /// Side of its patches.
    pub patch: usize,
}

/// Learns to tell hidden patches.
pub struct PatchLearner<'a> {
    /// The model.
    pub model: &'a Model,
    /// What is trained, the head among it.
    pub parameters: &'a Parameters,
    /// Side of a patch.
    pub patch: usize,
    /// Where features are told, who knows them.
    pub teacher: Option<FeatureTeacher>,
}

impl PatchLearner<'_> {
    /// What is to be told of a row, `[places, n]`.
    fn targets(&mut self, row: &Hidden) -> Result<Vec<f32>> {
        let Some(FeatureTeacher { model, cx, patch }) = &mut self.teacher else {
            return Ok(row.pixels.clone());
        };
        let (model, patch) = (&*model, *patch);
        let of = |pictures: &[Arc<PreparedImage>], side: usize| {
            let tiles = pictures.iter().flat_map(|picture| &picture.tiles).map(|tile| grid(tile, side));
            tiles.collect::<Vec<_>>()
        };
        let grids = [of(&row.shown, self.patch), of(&row.whole, patch)];
        if grids[0] != grids[1] {
            return Err(Error::Train(format!(
                "teacher and student are to see pictures in the same patches: the student sees tiles of {:?}, the teacher of {:?}",
                grids[0], grids[1]
            )));
        }
        let pictures: Vec<&PreparedImage> = row.whole.iter().map(|picture| &**picture).collect();
        // Recorded, so that what the tower gave stays until it is read.
        cx.scope(|cx| {
            cx.record(&[]);
            let found = tower(cx, model, &pictures).and_then(|kept| {
                let rows = rows_of(cx, &kept, &row.whole, &row.places, patch)?;
                cx.download(&rows)
            });
            if let Some(tape) = cx.recorded() {
                cx.forget(tape);
            }
            found
        })
    }

    fn passes(&mut self, cx: &mut Ctx, rows: &[Hidden], learn: bool) -> Result<Loss> {
        let total: usize = rows.iter().map(|row| row.places.len()).sum();
        let scale = learn.then(|| 1.0 / total.max(1) as f32);
        let mut loss = Loss::default();
        for row in rows {
            let targets = self.targets(row)?;
            let nats = cx.scope(|cx| {
                let trained = self.parameters.trained();
                cx.record(if learn { std::slice::from_ref(&trained) } else { &[] });
                let ran = self.pass(cx, row, &targets, scale);
                if let Some(tape) = cx.recorded() {
                    cx.forget(tape);
                }
                ran
            })?;
            let read = row.shown.iter().flat_map(|picture| &picture.tiles).map(|tile| grid(tile, self.patch));
            let read = read.map(|(rows, cols)| rows * cols).sum();
            loss.add(Loss { nats, tokens: row.places.len(), read });
        }
        Ok(loss)
    }

    fn pass(&self, cx: &mut Ctx, row: &Hidden, targets: &[f32], scale: Option<f32>) -> Result<f64> {
        let pictures: Vec<&PreparedImage> = row.shown.iter().map(|picture| &**picture).collect();
        let kept = tower(cx, self.model, &pictures)?;
        let rows = rows_of(cx, &kept, &row.shown, &row.places, self.patch)?;
        let weight = self.parameters.view(&format!("{HEAD}weight"))?;
        let bias = self.parameters.view(&format!("{HEAD}bias"))?;
        let n = weight.size(0);
        if targets.len() != row.places.len() * n {
            let found = targets.len() / row.places.len().max(1);
            return Err(Error::Train(format!("expected {n} numbers for each hidden patch, found {found}")));
        }
        let told = cx.alloc(&[row.places.len(), n], DType::F32)?;
        let op = Matmul::new(cx.view(&rows)?, Weights::dense(weight, Some(bias))?, cx.view(&told)?);
        cx.exec("head of hidden patches", &op)?;
        let tape = cx.recorded();
        let target = cx.upload(&[row.places.len(), n], targets)?;
        if scale.is_some() {
            return squared_error(cx, (&told, &target), scale, tape);
        }
        let sum = squared_error(cx, (&told, &target), None, None);
        if let Some(tape) = tape {
            cx.forget(tape);
        }
        sum
    }

    /// The head's values by name, as far as it is trained.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn head(&self, cx: &mut Ctx) -> Result<Vec<(String, Vec<f32>)>> {
        let names = ["weight", "bias"].map(|name| format!("{HEAD}{name}"));
        let one = |name: String| {
            let view = self.parameters.view(&name)?;
            let flat = view.reshape(&[view.len()])?;
            Ok((name, download(cx, &flat)?))
        };
        names.into_iter().map(one).collect()
    }
}

impl Learner<Hidden> for PatchLearner<'_> {
    fn gradient(&mut self, cx: &mut Ctx, rows: &[Hidden]) -> Result<Loss> {
        self.passes(cx, rows, true)
    }

    fn check(&mut self, cx: &mut Ctx, rows: &[Hidden]) -> Result<Checked> {
        Ok(Checked { loss: self.passes(cx, rows, false)?.mean(), exact: None })
    }

    /// Of normalized pixels it is what telling their mean costs; features have no scale of their own.
    fn guess(&self) -> f64 {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_normalized_by_their_own_pixels() {
        let found: Vec<f32> = normalized(&[1.0, 3.0, 1.0, 3.0]).collect();
        let one = (1.0 / (1.0 + EPS).sqrt()) as f32;
        assert_eq!(found, [-one, one, -one, one]);
        assert!(normalized(&[2.0; 5]).all(|value| value == 0.0));
    }
}
