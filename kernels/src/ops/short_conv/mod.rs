//! A short causal convolution of each channel along sequences, with the inputs before in a state.
//!
//! `u[t] = x[t]`, with gates `x[t] * before[t]`; `out[t] = sum_j weight[j] * u[t - kernel + 1 + j] + bias`, then SiLU or, with
//! gates, times `after[t]`. Inputs before a sequence's first row are those of its state, which then holds its last
//! `kernel - 1` inputs.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;
#[cfg(feature = "conformance")]
pub(in crate::ops) use cases::sequences;

use serde::{Deserialize, Serialize};

use super::check;
use super::sequences::Sequences;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Most taps of a channel.
pub const MOST_TAPS: usize = 8;

/// What happens to the inputs and to the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvForm {
    /// Nothing.
    #[default]
    Plain,
    /// SiLU of the sums.
    Silu,
    /// Inputs and sums are multiplied with gates: `x` is `[rows, 3 channels]`, gates of the inputs, gates of the sums, inputs.
    Gated,
}

/// `x: [rows, channels] or [rows, 3 channels]  weight: f32 [kernel, channels]  state: f32 [slots, kernel - 1, channels]  ->
/// out: [rows, channels]`, the state in place.
#[derive(Clone, Debug)]
pub struct ShortConv {
    /// Inputs, with their gates.
    pub x: View,
    /// f32 `[kernel, channels]`: the taps, that of the newest input last; 2 to [`MOST_TAPS`] of them.
    pub weight: View,
    /// f32 `[channels]`, added to the sums.
    pub bias: Option<View>,
    /// What happens to inputs and sums.
    pub form: ConvForm,
    /// f32 `[slots, kernel - 1, channels]`, dense: the last inputs of each sequence, the newest last.
    pub state: View,
    /// Which rows and states belong together.
    pub seqs: Sequences,
    /// Result `[rows, channels]`.
    pub out: View,
}

/// The key of a [`ShortConv`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ShortConvSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Sequences, bucketed.
    pub seqs: u32,
    /// Most rows of a sequence, bucketed.
    pub most: u32,
    /// Channels.
    pub channels: u32,
    /// Taps.
    pub kernel: u32,
    /// What happens to inputs and sums.
    pub form: ConvForm,
    /// Whether there is a bias.
    pub bias: bool,
    /// Type of the inputs.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

impl ShortConv {
    /// Taps of a channel.
    fn taps(&self) -> usize {
        self.weight.size(0)
    }

    /// Column of `x` where the gates of the sums begin, and where the inputs do; the gates of the inputs come first.
    fn columns(&self) -> (usize, usize) {
        let channels = self.weight.size(1);
        if self.form == ConvForm::Gated { (channels, 2 * channels) } else { (0, 0) }
    }
}

impl Op for ShortConv {
    const NAME: &'static str = "short_conv";
    type Spec = ShortConvSpec;

    fn spec(&self) -> Result<ShortConvSpec, ShapeError> {
        let Self { x, weight, bias, form, state, seqs, out } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::rank("weight", weight, 2)?;
        check::dtype("weight", weight, DType::F32)?;
        let (rows, kernel, channels) = (x.size(0), weight.size(0), weight.size(1));
        if !(2..=MOST_TAPS).contains(&kernel) {
            return Err(ShapeError::mismatch("weight axis 0", format!("2 to {MOST_TAPS}"), kernel));
        }
        let parts = if *form == ConvForm::Gated { 3 } else { 1 };
        check::shape("x", x, &[rows, parts * channels])?;
        check::shape("state", state, &[state.size(0), kernel - 1, channels])?;
        check::dtype("state", state, DType::F32)?;
        check::dense("state", state)?;
        check::shape("out", out, &[rows, channels])?;
        check::float("out", out)?;
        let mut inputs = vec![("x", x), ("weight", weight)];
        if let Some(bias) = bias {
            check::dtype("bias", bias, DType::F32)?;
            check::shape("bias", bias, &[channels])?;
            inputs.push(("bias", bias));
        }
        check::output("out", out, inputs.iter().copied().chain([("state", state)]))?;
        check::output("state", state, inputs)?;
        seqs.check(&[("out", out), ("state", state)])?;
        Ok(ShortConvSpec {
            rows: bucket(rows),
            seqs: bucket(seqs.count()),
            most: bucket(seqs.most),
            channels: channels as u32,
            kernel: kernel as u32,
            form: *form,
            bias: bias.is_some(),
            x: x.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        let states = (self.seqs.count() * (self.taps() - 1) * self.weight.size(1) * 4) as u64;
        Cost {
            flops: 2 * (self.out.len() * self.taps()) as u64,
            read: self.x.bytes() + self.weight.bytes() + states,
            written: self.out.bytes() + states,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visit(Access::In, bias);
        }
        self.seqs.visit(visit);
        visit(Access::InOut, &mut self.state);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &ShortConvSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, seqs, kernel) = (spec.rows as usize, spec.seqs as usize, spec.kernel as usize);
        let channels = spec.channels as usize;
        let parts = if spec.form == ConvForm::Gated { 3 } else { 1 };
        Ok(ShortConv {
            x: operands.activations(&[rows, parts * channels], spec.x)?,
            weight: operands.table(&[kernel, channels], DType::F32)?,
            bias: if spec.bias { Some(operands.table(&[channels], DType::F32)?) } else { None },
            form: spec.form,
            state: operands.output(&[seqs, kernel.saturating_sub(1), channels], DType::F32)?,
            seqs: Sequences::of_spec(rows, seqs, spec.most as usize, operands)?,
            out: operands.output(&[rows, channels], spec.out)?,
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
