//! Layers whose tokens mix in short convolutions, with the inputs before in a state.

use ocelli_engine::batch::{Packed, Run};
use ocelli_engine::kv::KvCache;
use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{self, ConvForm, Sequences};
use ocelli_kernels::{DType, View};

use super::{ConvPlan, TextPlan};
use crate::layers::Stacked;

/// Filters of a short convolution.
pub(super) struct Filters {
    path: String,
    /// f32 `[taps, channels]`.
    weight: Tensor,
    /// f32 `[channels]`.
    bias: Option<Tensor>,
}

impl Filters {
    /// Loads `weight [channels, 1, taps]` and, if there is one, `bias [channels]` at `scope`.
    pub(super) fn load(cx: &mut Ctx, scope: &Scope<'_>, channels: usize, plan: ConvPlan) -> Result<Self> {
        let taps = plan.taps;
        scope.take("weight", &[channels, 1, taps])?;
        let stored = scope.checkpoint().floats(&scope.path("weight"))?;
        let turned = (0..taps * channels).map(|i| stored[i % channels * taps + i / channels]);
        let weight = floats(cx, &[taps, channels], turned)?;
        let bias = if plan.bias {
            scope.take("bias", &[channels])?;
            let stored = scope.checkpoint().floats(&scope.path("bias"))?;
            Some(floats(cx, &[channels], stored.into_iter())?)
        } else {
            None
        };
        Ok(Self { path: scope.prefix().to_owned(), weight, bias })
    }

    /// Convolves the rows of each sequence; inputs before them are in `state`, the layer's number in a group of the cache.
    ///
    /// `x: [tokens, channels]`, or with gates `[tokens, 3 channels]`  ->  `[tokens, channels]`.
    pub(super) fn forward(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        form: ConvForm,
        state: (usize, usize),
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        let out = cx.alloc(&[x.size(0), self.weight.size(1)], cx.dtype())?;
        let states = states(kv, state, &self.path)?;
        for run in &batch.runs {
            let rows = |x: &Tensor| x.narrow(0, run.rows.start, run.rows.len());
            let op = ops::ShortConv {
                x: cx.view(&rows(x)?)?,
                weight: cx.view(&self.weight)?,
                bias: self.bias.as_ref().map(|bias| cx.view(bias)).transpose()?,
                form,
                state: states.clone(),
                seqs: sequences(cx, batch, run, state.0, &self.path)?,
                out: cx.view(&rows(&out)?)?,
            };
            cx.exec(&self.path, &op)?;
        }
        Ok(out)
    }
}

/// f32 values on the device, with memory of their own.
pub(super) fn floats(cx: &mut Ctx, shape: &[usize], values: impl Iterator<Item = f32>) -> Result<Tensor> {
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    let tensor = cx.alloc_owned(shape, DType::F32)?;
    cx.stream().write(tensor.view(), &bytes)?;
    Ok(tensor)
}

/// States of a layer.
pub(super) fn states<'a>(kv: &'a KvCache, (group, index): (usize, usize), path: &str) -> Result<&'a View> {
    kv.state(group, index).ok_or_else(|| Error::Request(format!("{path}: expected states, found none")))
}

/// The sequences of a run and their states in a group.
pub(super) fn sequences(cx: &Ctx, batch: &Packed, run: &Run, group: usize, path: &str) -> Result<Sequences> {
    let placed = batch.kv.get(group);
    let placed = placed.ok_or_else(|| Error::Request(format!("{path}: expected states, found none")))?;
    let of_run = |list: &Tensor| cx.view(&list.narrow(0, run.seqs.start, run.seqs.len())?);
    Ok(Sequences {
        starts: cx.view(&run.q_starts)?,
        lens: of_run(&placed.kv_lens)?,
        slots: of_run(&placed.slots)?,
        most: run.max_q,
    })
}

/// A convolution between gates: what mixes the tokens of an LFM2 layer.
pub(super) struct GatedConv {
    /// Gates of the inputs, gates of the sums, inputs.
    pub input: Stacked,
    filters: Filters,
}

impl GatedConv {
    pub(super) fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, conv: ConvPlan) -> Result<Self> {
        let d = plan.d;
        Ok(Self {
            input: Stacked::load(cx, scope.prefix(), &[(scope.at("in_proj"), 3 * d)], d, conv.bias)?,
            filters: Filters::load(cx, &scope.at("conv"), d, conv)?,
        })
    }

    /// `x: [tokens, 3 d]  ->  [tokens, d]`.
    pub(super) fn forward(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        state: (usize, usize),
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        self.filters.forward(cx, x, ConvForm::Gated, state, batch, kv)
    }
}
