//! Weight matrices: which storage format a module's tensors are in.

use std::sync::Arc;

use half::{bf16, f16};
use ocelli_kernels::{
    Code, DType, Format, Grouped, Oracle, ShapeError, Storage, StreamId, View, Weights, Zero,
};

use super::file::AlignedCopy;
use super::{Columns, Note, Scope, WeightError, published};
use crate::adapter::Delta;

/// Weights that share a scale, as quantizers have them.
const USUAL_GROUPS: [usize; 5] = [16, 32, 64, 128, 256];

/// Rows that are decoded at a time.
const ROWS: usize = 64;

impl Scope<'_> {
    /// The linear layer here, `y = x W^T + b`: W is `[n, k]` in any format that can be read, `bias` `[n]` where the architecture has
    /// one. Nothing is copied but planes that are not aligned.
    ///
    /// # Errors
    /// If tensors are absent, have other shapes, or are stored in a way that is not built.
    pub fn linear(&self, n: usize, k: usize, bias: bool) -> Result<Weights, WeightError> {
        match self.linear_in_order(n, k, bias)? {
            (w, None) => Ok(w),
            _ => Err(self.unsupported(
                "columns in activation order (g_idx) of heads; of other layers they are".into(),
            )),
        }
    }

    /// The linear layer here, and the columns of `x` that its columns meet, if they are in another order.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn linear_in_order(&self, n: usize, k: usize, bias: bool) -> Result<(Weights, Columns), WeightError> {
        let bias = if bias { Some(self.tensor("bias", &[n])?) } else { None };
        if let Some(delta) = self.checkpoint().deltas().get(self.prefix()).filter(|_| self.stack.is_none()) {
            return Ok((self.noted(true, self.merged(n, k, bias, delta)?)?, None));
        }
        let w = self.noted(true, self.load(n, k, bias)?)?;
        let order = self.published().and_then(|row| row.order).map(|order| order(self, n, k)).transpose()?;
        let columns = order.flatten().map(|order| order.iter().map(|&column| column as i32).collect());
        Ok((w, columns))
    }

    /// The matrix here with what an adapter adds to it.
    fn merged(&self, n: usize, k: usize, bias: Option<View>, delta: &Delta) -> Result<Weights, WeightError> {
        let stored =
            self.info("weight").and_then(|info| info.kernel_dtype()).filter(|dtype| dtype.is_float());
        let dtype = stored.filter(|_| !self.is_quantized()).unwrap_or(DType::BF16);
        let mut values = self.values(n, k)?;
        if !delta.add_to([n, k], &mut values) {
            let [rows, cols] = delta.shape();
            let reason = format!("expected an adapter of a matrix [{n}, {k}], found one of [{rows}, {cols}]");
            return Err(WeightError::tensor(self.checkpoint().path(), self.prefix(), reason));
        }
        let bytes: Vec<u8> = match dtype {
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        self.checkpoint().count_made(bytes.len());
        let storage = Storage::shared(Arc::new(AlignedCopy::of(&bytes)));
        let view = View::dense(storage, &[n, k], dtype).map_err(|e| self.misfit(&e))?;
        self.dense(view, bias)
    }

    /// The matrix `[rows, k]` here without a bias: a token table.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn embedding(&self, rows: usize, k: usize) -> Result<Weights, WeightError> {
        self.noted(true, self.load(rows, k, None)?)
    }

    /// The matrix `[n, k]` here, row by row in f32, however it is stored, its columns in the order of the architecture: for what is laid
    /// out in another way than products take it.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn values(&self, n: usize, k: usize) -> Result<Vec<f32>, WeightError> {
        if !self.is_quantized() {
            self.tensor("weight", &[n, k])?;
            return self.checkpoint().floats(&self.path("weight"));
        }
        let here = self.passing();
        let w = here.load(n, k, None)?;
        let order = here.published().and_then(|row| row.order).map(|order| order(&here, n, k)).transpose()?;
        let mut all = vec![0.0; n * k];
        if self.checkpoint().is_planned() {
            return Ok(all);
        }
        let oracle = Oracle::new(StreamId::fresh(), false);
        for (first, out) in (0..n).step_by(ROWS).zip(all.chunks_mut(ROWS * k.max(1))) {
            let rows = w.rows(first, ROWS.min(n - first)).map_err(|e| self.misfit(&e))?;
            let values =
                oracle.weights(&rows).map_err(|e| self.unsupported(format!("decoding the weights: {e}")))?;
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value as f32);
        }
        if let Some(order) = order.flatten() {
            let mut row = vec![0.0; k];
            for sorted in all.chunks_exact_mut(k.max(1)) {
                order.iter().zip(&*sorted).for_each(|(&column, value)| row[column] = *value);
                sorted.copy_from_slice(&row);
            }
        }
        Ok(all)
    }

    /// The same, noted as a matrix that the model takes.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn take_values(&self, n: usize, k: usize) -> Result<Vec<f32>, WeightError> {
        let values = self.values(n, k)?;
        if self.is_quantized() {
            let view = published::of_values(&self.passing(), n, k, &values)?;
            self.noted(false, self.dense(view, None)?)?;
        } else {
            self.take("weight", &[n, k])?;
        }
        Ok(values)
    }

    fn noted(&self, matrix: bool, w: Weights) -> Result<Weights, WeightError> {
        let source = self.published().map(|row| row.name);
        let module = match self.stack {
            Some(stack) => format!("{}[{}]", self.prefix(), stack.index),
            None => self.prefix().to_owned(),
        };
        self.checkpoint().note(Note::of_weights(&module, self.role_here(), matrix, &w, source));
        Ok(w)
    }

    /// The convolution here as a matrix `[n, k]`: `weight` is `[n, ...]` with `k` values for each output, such as
    /// `[d, channels, patch, patch]`, and `bias` `[n]`. Colours last, `[d, patch, patch, 3]` as MLX stores them, are brought to the front.
    ///
    /// A quantized matrix, of a tower whose patches go through a linear layer, is decoded to f32.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn patch_embed(&self, n: usize, k: usize, bias: bool) -> Result<Weights, WeightError> {
        if self.is_quantized() {
            let view = published::of_values(self, n, k, &self.values(n, k)?)?;
            let bias = if bias { Some(self.tensor("bias", &[n])?) } else { None };
            return self.noted(false, self.dense(view, bias)?);
        }
        let name = self.path("weight");
        // Square patches of three colours, where the file cannot tell.
        let side = (k / 3).isqrt();
        if 3 * side * side == k
            && let Some(imagined) = self.checkpoint().imagine(&name, &[n, 3, side, side])
        {
            let view = imagined?.reshape(&[n, k]).map_err(|e| self.misfit(&e))?;
            let bias = if bias { Some(self.tensor("bias", &[n])?) } else { None };
            return self.noted(false, self.dense(view, bias)?);
        }
        let Some(info) = self.info("weight") else { return Err(self.absent(&name)) };
        if info.shape.first() != Some(&n) || info.len() != n * k {
            let expected = format!("shape: expected [{n}, ...] of {} values, found {:?}", n * k, info.shape);
            return Err(WeightError::tensor(self.checkpoint().path(), &name, expected));
        }
        let view = if self.has_colours_last() {
            published::colours_first(self, n, k)?
        } else {
            self.checkpoint().tensor_as(&name, &[n, k])?
        };
        let bias = if bias { Some(self.tensor("bias", &[n])?) } else { None };
        self.noted(false, self.dense(view, bias)?)
    }

    /// Whether the filters here are stored `[d, .., patch, patch, 3]`, as MLX has them.
    #[must_use]
    pub fn has_colours_last(&self) -> bool {
        self.info("weight").is_some_and(|info| match *info.shape {
            [_, first, .., rows, cols, 3] => first != 3 && rows == cols,
            [_, rows, cols, 3] => rows != 3 && rows == cols,
            _ => false,
        })
    }

    fn load(&self, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
        self.checkpoint().refuse_unknown()?;
        if self.is_quantized() {
            self.refuse_rotations()?;
            // What it says, it says once.
            self.checkpoint().is_unnamed();
        }
        if self.is_turned() {
            return published::load_turned(self, n, k, bias);
        }
        if let Some(row) = self.published() {
            return match row.load {
                Ok(load) => load(self, n, k, bias),
                Err(why) => Err(self.unsupported(format!("{}: {why}; {}", row.name, published::supported()))),
            };
        }
        if !self.has("weight") && !self.checkpoint().imagines() {
            return Err(self.absent(&self.path("weight")));
        }
        self.dense(self.tensor("weight", &[n, k])?, bias)
    }

    /// Whether the matrix here is stored in one of the published ways to quantize.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        self.published().is_some()
    }

    fn published(&self) -> Option<&'static published::Published> {
        published::ALL.iter().find(|row| (row.is)(self))
    }

    fn dense(&self, view: View, bias: Option<View>) -> Result<Weights, WeightError> {
        if !view.dtype().is_float() {
            return Err(self.unsupported(format!(
                "weight of type {}; {}",
                view.dtype(),
                published::supported()
            )));
        }
        Weights::dense(view, bias).map_err(|e| self.misfit(&e))
    }

    /// compressed-tensors `pack-quantized`: the planes of [`Grouped`] as they lie in the file.
    pub(super) fn packed(&self, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
        let checkpoint = self.checkpoint();
        let quantization = checkpoint.quantization();
        let scheme = quantization.and_then(|q| q.scheme(self.prefix()));
        self.refuse_rotations()?;
        let activations = match scheme {
            Some(scheme) => scheme.activations,
            None => {
                checkpoint.is_unnamed()
                    && quantization.is_some_and(|q| q.schemes.iter().any(|scheme| scheme.activations))
            }
        };
        if activations {
            return Err(
                self.unsupported("quantized activations (input_activations); weights alone can be".into())
            );
        }
        let (Some(packed), Some(scale)) = (self.info("weight_packed"), self.info("weight_scale")) else {
            return Err(self.absent(&self.path("weight_scale")));
        };
        if self.has("weight_shape") {
            let stored = checkpoint.ints(&self.path("weight_shape"))?;
            if stored != [n as i64, k as i64] {
                let reason = format!("shape: expected [{n}, {k}], found {stored:?}");
                return Err(WeightError::tensor(checkpoint.path(), &self.path("weight_shape"), reason));
            }
        }
        let bits = self.bits(packed.shape, n, k, scheme.map(|scheme| scheme.bits))?;
        let Some(scale_type) = scale.kernel_dtype().filter(|dtype| dtype.is_float()) else {
            return Err(
                self.unsupported(format!("weight_scale of type {}; F32, BF16 and F16 are", scale.dtype))
            );
        };
        let &[rows, groups] = scale.shape else {
            return Err(self.wrong_shape(&self.path("weight_scale"), &[n, 1], scale.shape));
        };
        if rows != n || groups == 0 && k > 0 {
            return Err(self.wrong_shape(&self.path("weight_scale"), &[n, groups.max(1)], scale.shape));
        }
        let group = self.group(bits, k, groups)?;
        // A symmetric scheme's zero points are all zero, whatever layout old writers gave them.
        let zero = self.has("weight_zero_point") && !scheme.is_some_and(|scheme| scheme.symmetric);
        if !matches!(bits, 4 | 8) || self.has("weight_g_idx") {
            return published::pack_quantized(self, [n, k], usize::from(bits), group as usize, zero, bias);
        }
        let code = if bits == 4 { Code::Int4 } else { Code::Int8 };
        let zero = if zero { Zero::Codes } else { Zero::None };
        let format = Format::Grouped(Grouped { code, group, zero, scale: scale_type });
        let mut planes = Vec::with_capacity(3);
        for plane in format.planes(n, k) {
            let name = match plane.name {
                "packed" => "weight_packed",
                "scales" => "weight_scale",
                _ => "weight_zero_point",
            };
            let view = self.tensor(name, &[plane.rows, plane.cols])?;
            if view.dtype() != plane.dtype {
                let reason = format!("expected {}, found {}", plane.dtype, view.dtype());
                return Err(WeightError::tensor(checkpoint.path(), &self.path(name), reason));
            }
            planes.push(view);
        }
        Weights::new(format, n, k, planes, bias).map_err(|e| self.misfit(&e))
    }

    /// Errors where the configuration names rotations of the weights.
    pub(super) fn refuse_rotations(&self) -> Result<(), WeightError> {
        if self.checkpoint().quantization().is_some_and(|q| q.transforms) {
            return Err(self.unsupported(
                "rotated weights (transform_config of quantization_config, or AutoRound's)".into(),
            ));
        }
        Ok(())
    }

    /// Bits of a weight, from the words in a row. Where a row is so short that both would do, the configuration tells.
    fn bits(&self, packed: &[usize], n: usize, k: usize, stated: Option<u64>) -> Result<u8, WeightError> {
        let words = |bits: usize| (k * bits).div_ceil(32);
        let fits = |bits: u8| packed == [n, words(bits.into())];
        let padded = |bits: u8| packed == [n, k.div_ceil(32 / usize::from(bits))];
        let odd = |bits: &u8| matches!(bits, 2 | 3 | 5 | 6 | 7) && (fits(*bits) || padded(*bits));
        let narrow = stated.and_then(|bits| u8::try_from(bits).ok());
        // Old writers' words of four codes of 7 bits are as many as those of 8.
        if let Some(bits) = narrow.filter(odd) {
            return Ok(bits);
        }
        let likely = if stated == Some(8) { [8, 4] } else { [4, 8] };
        if let Some(bits) = likely.into_iter().find(|&bits| fits(bits)) {
            return Ok(bits);
        }
        [2, 3, 5, 6, 7].into_iter().find(odd).ok_or_else(|| {
            self.wrong_shape(&self.path("weight_packed"), &[n, words(likely[0].into())], packed)
        })
    }

    /// Weights that share a scale, from the scales in a row and what the configuration states; 0 for a whole row.
    fn group(&self, bits: u8, k: usize, groups: usize) -> Result<u32, WeightError> {
        let quantization = self.checkpoint().quantization();
        let of_module = quantization.and_then(|q| q.scheme(self.prefix()));
        if let Some(size) = of_module.and_then(|scheme| scheme.group_for(bits, k, groups)) {
            return Ok(size as u32);
        }
        // Module names in the configuration may differ from those in the file: then any group that fits will do, as
        // long as all that fit agree.
        let mut sizes: Vec<usize> = quantization
            .iter()
            .flat_map(|q| &q.schemes)
            .filter_map(|scheme| scheme.group_for(bits, k, groups))
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        match sizes[..] {
            [size] => Ok(size as u32),
            _ if groups <= 1 => Ok(0),
            [] => match self.likely_groups(k, groups)[..] {
                [size] => Ok(size as u32),
                ref likely => Err(self.unsupported(format!(
                    "{groups} groups of {k} weights: expected one group size of config.json to fit, found {sizes:?}; without \
                     one, {likely:?} would"
                ))),
            },
            _ => Err(self.unsupported(format!(
                "{groups} groups of {k} weights: expected one group size of config.json to fit, found {sizes:?}"
            ))),
        }
    }

    /// Sizes of groups that so many scales of a row of `k` weights may have, where the configuration does not say which: equal groups; where
    /// it has groups but names no module of this file, also usual sizes with a shorter last group.
    pub(super) fn likely_groups(&self, k: usize, groups: usize) -> Vec<usize> {
        let even = k.is_multiple_of(groups).then(|| k / groups);
        let usual = if self.checkpoint().is_unnamed() { &USUAL_GROUPS[..] } else { &[] };
        let short = usual.iter().copied().filter(|&size| k.div_ceil(size) == groups && Some(size) != even);
        even.into_iter().chain(short).collect()
    }

    pub(super) fn absent(&self, name: &str) -> WeightError {
        self.checkpoint().missing(name, name)
    }

    pub(super) fn unsupported(&self, what: String) -> WeightError {
        WeightError::Unsupported {
            path: self.checkpoint().path().to_owned(),
            module: self.prefix().to_owned(),
            reason: format!("not supported: {what}"),
        }
    }

    fn misfit(&self, error: &ShapeError) -> WeightError {
        WeightError::shape(self.checkpoint().path(), self.prefix(), error)
    }
}
