//! 8-bit floats: compressed-tensors `float-quantized`, and the files of `quant_method: "fp8"`.

use std::sync::Arc;

use ocelli_kernels::{Code, DType, Format, Grouped, Storage, View, Weights, Zero};
use safetensors::Dtype;

use super::file::AlignedCopy;
use super::{Scheme, Scope, WeightError};

/// Names of the scales. Both multiply.
pub(super) const SCALES: [&str; 2] = ["weight_scale", "weight_scale_inv"];

/// Rows and columns of a block where nothing says otherwise.
pub(super) const USUAL_BLOCK: [usize; 2] = [128, 128];

impl Scope<'_> {
    /// Whether the matrix here is stored as 8-bit floats with scales.
    pub(super) fn is_fp8(&self) -> bool {
        self.info("weight").is_some_and(|info| info.dtype == Dtype::F8_E4M3)
            && SCALES.iter().any(|name| self.has(name))
            && !self.has("weight_scale_2")
    }

    /// The matrix `[n, k]` here, where it lies in the file. What a file says of activations is not applied: they stay as they
    /// are, which is nearer to the model before it was quantized.
    pub(super) fn fp8(&self, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
        self.refuse_rotations()?;
        if self.has("weight_zp") {
            return Err(self.unsupported("FP8 with zero points (weight_zp)".into()));
        }
        let (path, weight) = (self.checkpoint().path(), self.path("weight"));
        if let Some(info) = self.info("weight")
            && info.shape != [n, k]
        {
            return Err(self.wrong_shape(&weight, &[n, k], info.shape));
        }
        let (scales, group) = self.fp8_scales(n, k)?;
        let format = Format::Grouped(Grouped {
            code: Code::Fp8,
            group: group as u32,
            zero: Zero::None,
            scale: scales.dtype(),
        });
        let packed = self.words("weight", n, k)?;
        Weights::new(format, n, k, [packed, scales], bias)
            .map_err(|e| WeightError::shape(path, self.prefix(), &e))
    }

    /// The scales `[n, groups]`, and the columns that share one; 0 for a whole row. Scales of blocks of several rows are
    /// repeated for each of them.
    fn fp8_scales(&self, n: usize, k: usize) -> Result<(View, usize), WeightError> {
        let checkpoint = self.checkpoint();
        let name = SCALES.into_iter().find(|name| self.has(name)).unwrap_or(SCALES[0]);
        let full = self.path(name);
        let Some(info) = self.info(name) else { return Err(checkpoint.missing(&full, &full)) };
        let fail = |reason: String| WeightError::tensor(checkpoint.path(), &full, reason);
        let (rows, cols) = match *info.shape {
            [] | [1] => (1, 1),
            [rows] => (rows, 1),
            [rows, cols] => (rows, cols),
            _ => return Err(self.wrong_shape(&full, &[n, 1], info.shape)),
        };
        let Some([height, width]) = self.fp8_block([n, k], [rows, cols]) else {
            return Err(fail(format!(
                "shape: {:?} scales of [{n}, {k}] weights fit neither one for all, nor one a row, nor the blocks of \
                 config.json, nor blocks of {USUAL_BLOCK:?}",
                info.shape
            )));
        };
        let group = if cols == 1 { 0 } else { width };
        let bytes = self.raw(name)?;
        let (dtype, scales) = match info.dtype {
            Dtype::F8_E8M0 | Dtype::U8 => {
                // Powers of two, 2^(e - 127); 255 is NaN.
                if bytes.contains(&u8::MAX) {
                    return Err(fail("a scale is NaN".into()));
                }
                if rows == n {
                    return Ok((self.plane(name, &[n, cols], DType::E8M0)?, group));
                }
                (DType::E8M0, bytes.to_vec())
            }
            _ => match info.kernel_dtype().filter(|dtype| dtype.is_float()) {
                Some(_) if rows == n => return Ok((self.tensor_as(name, &[n, cols])?, group)),
                Some(dtype) => (dtype, bytes.to_vec()),
                None => {
                    return Err(fail(format!("expected F32, BF16, F16 or F8_E8M0, found {}", info.dtype)));
                }
            },
        };
        let pitch = cols * dtype.size();
        let mut all = Vec::with_capacity(n * pitch);
        (0..n).for_each(|row| all.extend_from_slice(&scales[row / height * pitch..][..pitch]));
        let storage = Storage::shared(Arc::new(AlignedCopy::of(&all)));
        View::dense(storage, &[n, cols], dtype)
            .map(|view| (view, group))
            .map_err(|e| WeightError::shape(checkpoint.path(), &full, &e))
    }

    /// Rows and columns that share a scale, if `scales` of them cover the matrix: what the configuration states, or what its
    /// shape says without it. Files round up: the last blocks may be partial.
    fn fp8_block(&self, size: [usize; 2], scales: [usize; 2]) -> Option<[usize; 2]> {
        let quantization = self.checkpoint().quantization();
        let scheme = quantization.and_then(|q| q.scheme(self.prefix()));
        let stated = [scheme.and_then(|scheme| scheme.block), quantization.and_then(|q| q.block)];
        let group = scheme.and_then(|scheme| scheme.group).and_then(|group| usize::try_from(group).ok());
        let even = size[1].is_multiple_of(scales[1].max(1)).then(|| size[1] / scales[1].max(1));
        let rows = [group, even].into_iter().flatten().map(|width| [1, width]);
        let fits = |block: &[usize; 2]| {
            (0..2).all(|axis| block[axis] > 0 && size[axis].div_ceil(block[axis]) == scales[axis])
        };
        if let (None, Some(quantization), true) = (scheme, quantization, self.checkpoint().is_unnamed()) {
            let of_scheme = |scheme: &Scheme| {
                let group = scheme.group.and_then(|group| usize::try_from(group).ok());
                scheme.block.or(group.map(|group| [1, group])).filter(fits)
            };
            let mut stated: Vec<[usize; 2]> = quantization.schemes.iter().filter_map(of_scheme).collect();
            stated.sort_unstable();
            stated.dedup();
            match stated[..] {
                [block] => return Some(block),
                [] if scales[0] == size[0] && scales[1] > 1 => {
                    let likely = self.likely_groups(size[1], scales[1]);
                    return if let [width] = likely[..] { Some([1, width]) } else { None };
                }
                [] => {}
                _ => return None,
            }
        }
        let all = stated.into_iter().flatten().chain(rows).chain([size, USUAL_BLOCK]);
        all.into_iter().find(fits)
    }
}
