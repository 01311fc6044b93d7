//! Gradients of [`PatchEmbed`](super::PatchEmbed) by filters, bias and position embeddings; pixels have none.
//!
//! `d_w[j, i] += sum over patches p of d_out[p, j] * pixel[p, i]`, with the pixels of a patch normalized and in the order of the filters;
//! `d_bias[j] += sum over patches of d_out[p, j]`; `d_pos[pos_ids[p], j] += d_out[p, j]`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::{check_pixels, check_std, patches_of_image, size_of};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::ops::sums::Checked;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `pixels: u8 [images, height, width, 3] or f32 [images, 3, height, width]  d_out: [patches, d_model]  ->
/// d_w: [d_model, 3 * patch * patch]  d_bias: [d_model]  d_pos: [positions, d_model]`, gradients f32. What is not asked for is not computed.
#[derive(Clone, Debug)]
pub struct PatchEmbedGrad {
    /// Bytes `[images, height, width, 3]`, or normalized f32 `[images, 3, height, width]`.
    pub pixels: View,
    /// i32 `[patches]`: the row of the position embeddings that each patch took; without it patch `p` of each picture took row `p`.
    pub pos_ids: Option<View>,
    /// Mean of each channel in grey levels (0 to 255), for bytes.
    pub mean: [f32; 3],
    /// Standard deviation of each channel in grey levels, for bytes.
    pub std: [f32; 3],
    /// Height and width of a patch.
    pub patch: usize,
    /// Gradient of the result `[patches, d_model]`.
    pub d_out: View,
    /// Gradient of the filters `[d_model, 3 * patch * patch]`: added to.
    pub d_w: Option<View>,
    /// Gradient of the bias `[d_model]`: added to.
    pub d_bias: Option<View>,
    /// Gradient of the position embeddings `[positions, d_model]`: added to.
    pub d_pos: Option<View>,
}

/// The key of a [`PatchEmbedGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PatchEmbedGradSpec {
    /// Pictures, bucketed.
    pub images: u32,
    /// Height of a picture.
    pub height: u32,
    /// Width of a picture.
    pub width: u32,
    /// Height and width of a patch.
    pub patch: u32,
    /// Features of a patch.
    pub d: u32,
    /// Type of the pixels: u8 or f32.
    pub pixels: DType,
    /// Whether the gradient of the filters is asked for.
    pub d_w: bool,
    /// Whether that of the bias is.
    pub d_bias: bool,
    /// Whether that of the position embeddings is.
    pub d_pos: bool,
}

impl PatchEmbedGrad {
    /// Patches of one picture.
    #[must_use]
    pub fn patches_per_image(&self) -> usize {
        patches_of_image(&self.pixels, self.patch)
    }
}

impl Op for PatchEmbedGrad {
    const NAME: &'static str = "patch_embed_grad";
    type Spec = PatchEmbedGradSpec;

    fn spec(&self) -> Result<PatchEmbedGradSpec, ShapeError> {
        let Self { pixels, pos_ids, d_out, d_w, d_bias, d_pos, patch, .. } = self;
        check_pixels(pixels)?;
        if *patch == 0 {
            return Err(ShapeError::mismatch("patch", "at least 1", 0));
        }
        check_std(&self.std)?;
        let (images, height, width) = size_of(pixels);
        let patches = images * self.patches_per_image();
        check::rank("d_out", d_out, 2)?;
        let d = d_out.size(1);
        check::shape("d_out", d_out, &[patches, d])?;
        check::dtype("d_out", d_out, DType::F32)?;
        let mut inputs = vec![("pixels", pixels)];
        if let Some(ids) = pos_ids {
            check::dtype("pos_ids", ids, DType::I32)?;
            check::shape("pos_ids", ids, &[patches])?;
            inputs.push(("pos_ids", ids));
        }
        let mut checked = Checked::new(d_out, inputs);
        checked.sum("d_w", d_w.as_ref(), &[d, 3 * patch * patch])?;
        checked.sum("d_bias", d_bias.as_ref(), &[d])?;
        if let Some(d_pos) = d_pos {
            check::rank("d_pos", d_pos, 2)?;
            checked.sum("d_pos", Some(d_pos), &[d_pos.size(0), d])?;
            if pos_ids.is_none() && d_pos.size(0) < self.patches_per_image() {
                return Err(ShapeError::mismatch(
                    "d_pos axis 0",
                    format!("{} patches of a picture or more", self.patches_per_image()),
                    d_pos.size(0),
                ));
            }
        }
        Ok(PatchEmbedGradSpec {
            images: bucket(images),
            height: height as u32,
            width: width as u32,
            patch: *patch as u32,
            d: d as u32,
            pixels: pixels.dtype(),
            d_w: d_w.is_some(),
            d_bias: d_bias.is_some(),
            d_pos: d_pos.is_some(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, 64].map(|images| Self::Spec { images, ..*spec })
    }

    fn cost(&self) -> Cost {
        let bytes = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        let patches = self.d_out.size(0) as u64;
        let added = bytes(&self.d_w) + bytes(&self.d_bias) + bytes(&self.d_pos);
        let pixels = self.d_w.as_ref().map_or(0, |_| self.pixels.bytes());
        Cost {
            flops: 2 * patches * self.d_w.as_ref().map_or(0, View::len) as u64,
            read: pixels + bytes(&self.pos_ids) + self.d_out.bytes() + added,
            written: added,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.pixels);
        if let Some(ids) = &mut self.pos_ids {
            visit(Access::In, ids);
        }
        visit(Access::In, &mut self.d_out);
        for view in self.d_w.iter_mut().chain(&mut self.d_bias).chain(&mut self.d_pos) {
            visit(Access::InOut, view);
        }
    }

    fn of_spec(spec: &PatchEmbedGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (images, height, width) = (spec.images as usize, spec.height as usize, spec.width as usize);
        let (patch, d) = (spec.patch as usize, spec.d as usize);
        let each = (height / patch.max(1)) * (width / patch.max(1));
        let shape =
            if spec.pixels == DType::U8 { [images, height, width, 3] } else { [images, 3, height, width] };
        let mut to =
            |wanted: bool, shape: &[usize]| wanted.then(|| operands.output(shape, DType::F32)).transpose();
        let (d_w, d_bias) = (to(spec.d_w, &[d, 3 * patch * patch])?, to(spec.d_bias, &[d])?);
        let d_pos = to(spec.d_pos, &[each, d])?;
        Ok(PatchEmbedGrad {
            pixels: operands.activations(&shape, spec.pixels)?,
            pos_ids: None,
            mean: [127.5; 3],
            std: [127.5; 3],
            patch,
            d_out: operands.activations(&[images * each, d], DType::F32)?,
            d_w,
            d_bias,
            d_pos,
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

#[cfg(feature = "wgpu")]
impl crate::wgpu::WgpuOp for PatchEmbedGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for PatchEmbedGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
