//! Cuts pictures into patches and projects them, with normalization and position embedding in the same pass.
//!
//! `out[p, j] = sum_{c, y, x} w[j, c, y, x] * norm_c(pixel[c, Y + y, X + x]) + bias[j] + pos[pos_ids[p], j]`,
//! `norm_c(level) = (level - mean[c]) / std[c]` for bytes; f32 pixels are taken as they are.
//! Patches follow each other row by row within a picture, pictures one after another.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub use self::grad::{PatchEmbedGrad, PatchEmbedGradSpec};
use super::check;
use crate::buffer::{View, Weights};
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, Format, KernelError, ShapeError, bucket};

/// `pixels: u8 [images, height, width, 3] or f32 [images, 3, height, width]  w: [d_model, 3 * patch * patch]  ->
/// out: [images * (height / patch) * (width / patch), d_model]`. Rows and columns beyond the last whole patch are left out.
#[derive(Clone, Debug)]
pub struct PatchEmbed {
    /// Bytes `[images, height, width, 3]`, or normalized f32 `[images, 3, height, width]`.
    pub pixels: View,
    /// Filters `[d_model, 3 * patch * patch]`, channel outermost, then row; with the bias.
    pub w: Weights,
    /// Position embeddings `[positions, d_model]`.
    pub pos: Option<View>,
    /// i32 `[patches]`: the row of `pos` for each patch; without it patch `p` of each picture takes row `p`.
    pub pos_ids: Option<View>,
    /// Mean of each channel in grey levels (0 to 255), for bytes.
    pub mean: [f32; 3],
    /// Standard deviation of each channel in grey levels, for bytes.
    pub std: [f32; 3],
    /// Height and width of a patch.
    pub patch: usize,
    /// Result `[patches, d_model]`.
    pub out: View,
}

/// The key of a [`PatchEmbed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PatchEmbedSpec {
    /// Pictures, bucketed.
    pub images: u32,
    /// Height of a picture.
    pub height: u32,
    /// Width of a picture.
    pub width: u32,
    /// Height and width of a patch.
    pub patch: u32,
    /// Output features.
    pub d: u32,
    /// Type of the pixels: u8 or f32.
    pub pixels: DType,
    /// Format of the filters.
    pub w: Format,
    /// Type of the result.
    pub out: DType,
    /// Whether position embeddings are added.
    pub pos: bool,
}

/// Pictures, their height and width, from the shape of their pixels.
fn size_of(pixels: &View) -> (usize, usize, usize) {
    if pixels.dtype() == DType::U8 {
        (pixels.size(0), pixels.size(1), pixels.size(2))
    } else {
        (pixels.size(0), pixels.size(2), pixels.size(3))
    }
}

/// Whole patches of one picture.
fn patches_of_image(pixels: &View, patch: usize) -> usize {
    let (_, height, width) = size_of(pixels);
    let whole = |size: usize| size.checked_div(patch).unwrap_or(0);
    whole(height) * whole(width)
}

/// Checks that pixels are pictures of three channels.
fn check_pixels(pixels: &View) -> Result<(), ShapeError> {
    check::rank("pixels", pixels, 4)?;
    check::dense("pixels", pixels)?;
    let channels = match pixels.dtype() {
        DType::U8 => pixels.size(3),
        DType::F32 => pixels.size(1),
        other => return Err(ShapeError::mismatch("pixels", "u8 or f32", other)),
    };
    if channels != 3 {
        return Err(ShapeError::mismatch("pixels axis channel", 3, channels));
    }
    Ok(())
}

/// Checks that no channel has a standard deviation of zero.
fn check_std(std: &[f32; 3]) -> Result<(), ShapeError> {
    if std.contains(&0.0) {
        return Err(ShapeError::mismatch("std", "no zero", format!("{std:?}")));
    }
    Ok(())
}

impl PatchEmbed {
    /// Pictures, height and width.
    #[must_use]
    pub fn size(&self) -> (usize, usize, usize) {
        size_of(&self.pixels)
    }

    /// Patches of one picture.
    #[must_use]
    pub fn patches_per_image(&self) -> usize {
        patches_of_image(&self.pixels, self.patch)
    }
}

impl Op for PatchEmbed {
    const NAME: &'static str = "patch_embed";
    type Spec = PatchEmbedSpec;

    fn spec(&self) -> Result<PatchEmbedSpec, ShapeError> {
        let Self { pixels, w, pos, pos_ids, out, .. } = self;
        check_pixels(pixels)?;
        if self.patch == 0 || w.k() != 3 * self.patch * self.patch {
            return Err(ShapeError::mismatch("w axis k", format!("3 * {0} * {0}", self.patch), w.k()));
        }
        check_std(&self.std)?;
        let (images, height, width) = self.size();
        let patches = images * self.patches_per_image();
        check::float("out", out)?;
        check::shape("out", out, &[patches, w.n()])?;
        let mut inputs = vec![("pixels", pixels)];
        if let Some(pos) = pos {
            check::rank("pos", pos, 2)?;
            check::float("pos", pos)?;
            if pos.size(1) != w.n() {
                return Err(ShapeError::mismatch("pos axis 1", w.n(), pos.size(1)));
            }
            if pos_ids.is_none() && pos.size(0) < self.patches_per_image() {
                return Err(ShapeError::mismatch(
                    "pos axis 0",
                    format!("{} patches of a picture or more", self.patches_per_image()),
                    pos.size(0),
                ));
            }
            inputs.push(("pos", pos));
        }
        if let Some(ids) = pos_ids {
            check::dtype("pos_ids", ids, DType::I32)?;
            check::shape("pos_ids", ids, &[patches])?;
            inputs.push(("pos_ids", ids));
        }
        for part in w.parts() {
            inputs.extend(part.planes.iter().chain(&part.bias).map(|view| ("w", view)));
        }
        check::output("out", out, inputs)?;
        Ok(PatchEmbedSpec {
            images: bucket(images),
            height: height as u32,
            width: width as u32,
            patch: self.patch as u32,
            d: w.n() as u32,
            pixels: pixels.dtype(),
            w: w.format(),
            out: out.dtype(),
            pos: pos.is_some(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, 64].map(|images| Self::Spec { images, ..*spec })
    }

    fn cost(&self) -> Cost {
        let patches = self.out.size(0) as u64;
        Cost {
            flops: 2 * patches * self.w.n() as u64 * self.w.k() as u64,
            read: self.pixels.bytes() + self.w.bytes() + self.pos.as_ref().map_or(0, View::bytes),
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.pixels);
        self.w.for_each_view(&mut |view| visit(Access::In, view));
        for view in self.pos.iter_mut().chain(&mut self.pos_ids) {
            visit(Access::In, view);
        }
        visit(Access::Out, &mut self.out);
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.w)
    }

    fn of_spec(spec: &PatchEmbedSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (images, height, width) = (spec.images as usize, spec.height as usize, spec.width as usize);
        let (patch, d) = (spec.patch as usize, spec.d as usize);
        let patches = images * (height / patch.max(1)) * (width / patch.max(1));
        let shape =
            if spec.pixels == DType::U8 { [images, height, width, 3] } else { [images, 3, height, width] };
        Ok(PatchEmbed {
            pixels: operands.activations(&shape, spec.pixels)?,
            w: operands.weights(spec.w, d, 3 * patch * patch, 1, true)?,
            pos: if spec.pos {
                Some(operands.table(&[patches / images.max(1), d], DType::F32)?)
            } else {
                None
            },
            pos_ids: None,
            mean: [127.5; 3],
            std: [127.5; 3],
            patch,
            out: operands.output(&[patches, d], spec.out)?,
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
