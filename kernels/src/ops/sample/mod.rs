//! Chooses the next token of each row from its logits.
//!
//! In this order, as transformers' logits processors do: repetition penalty, mask, temperature, top-k, top-p, min-p, softmax
//! over what is left, then the first token (by descending probability, ties by lower id) whose cumulative probability
//! exceeds `uniform`. A temperature of 0 takes the largest penalized logit, the lowest id among equals.
//!
//! A mask leaves some tokens alone; the logits of the others count as minus infinity.
//!
//! Where a logit of the row is NaN, or the largest is infinite, nothing can be chosen: the row gets [`NO_TOKEN`]. Minus
//! infinity is a logit like any other as long as one is finite.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, MANY, ShapeError, bucket};

/// Columns of [`Sample::params`].
pub mod params {
    /// 0 is greedy.
    pub const TEMPERATURE: usize = 0;
    /// Tokens kept by rank; 0 keeps all.
    pub const TOP_K: usize = 1;
    /// Probability mass kept; 1 keeps all.
    pub const TOP_P: usize = 2;
    /// Least probability kept, relative to the largest; 0 keeps all.
    pub const MIN_P: usize = 3;
    /// Divides positive and multiplies negative logits of tokens seen before; 1 is off.
    pub const REPETITION_PENALTY: usize = 4;
    /// In `[0, 1)`: where the cumulative distribution is cut.
    pub const UNIFORM: usize = 5;
    /// Row of [`Sample::mask`](super::Sample::mask) that says which tokens may be chosen, counted from 1; 0 is all tokens.
    pub const MASK: usize = 6;
    /// Number of columns.
    pub const COUNT: usize = 7;
}

/// What a row gets that has a NaN, or no finite largest logit: a model whose weights or inputs are damaged.
pub const NO_TOKEN: i32 = -1;

/// `logits: [rows, vocab]  params: [rows, 7]  history: [rows, max_history]  mask: [masks, vocab / 32]  ->  out: i32 [rows]`.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Logits `[rows, vocab]`.
    pub logits: View,
    /// f32 `[rows, params::COUNT]`, see [`params`].
    pub params: View,
    /// i32 `[rows, max_history]`: tokens that the penalty is for; negative ones are padding.
    pub history: Option<View>,
    /// i32 `[masks, vocab / 32]`, rounded up: bit `t % 32` of word `t / 32` is set where token `t` may be chosen. Rows name the one
    /// that is theirs, see [`params::MASK`]; none needs to.
    pub mask: Option<View>,
    /// i32 `[rows]`: the token of each row, or [`NO_TOKEN`].
    pub out: View,
}

/// Bytes of the keys that a GPU sorts at once.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
const KEYS: usize = 64 << 20;

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl Sample {
    /// The rows, so many at a time as a GPU has working memory and a grid has blocks for. Nothing if there are none.
    fn batches(&self) -> Result<Vec<Self>, KernelError> {
        let (rows, vocab) = (self.logits.size(0), self.logits.size(1));
        if rows == 0 || vocab == 0 {
            return Ok(Vec::new());
        }
        let at_once = (KEYS / 4 / vocab.next_multiple_of(4)).clamp(1, 65_535);
        let batch = |first: usize| {
            let part = |view: &View| view.narrow(0, first, at_once.min(rows - first));
            Ok(Self {
                logits: part(&self.logits)?,
                params: part(&self.params)?,
                history: self.history.as_ref().map(part).transpose()?,
                mask: self.mask.clone(),
                out: part(&self.out)?,
            })
        };
        (0..rows).step_by(at_once).map(batch).collect()
    }
}

/// The key of a [`Sample`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SampleSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Type of the logits.
    pub x: DType,
    /// Whether there is a history to penalize.
    pub history: bool,
    /// Whether there are masks.
    pub mask: bool,
}

impl Op for Sample {
    const NAME: &'static str = "sample";
    type Spec = SampleSpec;

    fn spec(&self) -> Result<SampleSpec, ShapeError> {
        let Self { logits, params, history, mask, out } = self;
        check::rank("logits", logits, 2)?;
        check::float("logits", logits)?;
        let (rows, vocab) = (logits.size(0), logits.size(1));
        if vocab == 0 && rows > 0 {
            return Err(ShapeError::mismatch("logits axis vocab", "at least one token", 0));
        }
        check::dtype("params", params, DType::F32)?;
        check::shape("params", params, &[rows, params::COUNT])?;
        if let Some(history) = history {
            check::rank("history", history, 2)?;
            check::dtype("history", history, DType::I32)?;
            check::shape("history", history, &[rows, history.size(1)])?;
        }
        if let Some(mask) = mask {
            check::rank("mask", mask, 2)?;
            check::dtype("mask", mask, DType::I32)?;
            check::shape("mask", mask, &[mask.size(0), vocab.div_ceil(32)])?;
        }
        check::dtype("out", out, DType::I32)?;
        check::shape("out", out, &[rows])?;
        let history = history.as_ref().map(|view| ("history", view));
        let mask = mask.as_ref().map(|view| ("mask", view));
        let inputs = [("logits", logits), ("params", params)].into_iter().chain(history).chain(mask);
        check::output("out", out, inputs)?;
        Ok(SampleSpec {
            rows: bucket(rows),
            vocab: vocab as u32,
            x: logits.dtype(),
            history: self.history.is_some(),
            mask: self.mask.is_some(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|rows| Self::Spec { rows, ..*spec })
    }

    fn cost(&self) -> Cost {
        Cost { flops: self.logits.len() as u64, read: self.logits.bytes(), written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.logits);
        visit(Access::In, &mut self.params);
        if let Some(history) = &mut self.history {
            visit(Access::In, history);
        }
        if let Some(mask) = &mut self.mask {
            visit(Access::In, mask);
        }
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &SampleSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, vocab) = (spec.rows as usize, spec.vocab as usize);
        let history = if spec.history {
            Some(operands.ints(&[rows, 64], &|i| (i % vocab.max(1)) as i32)?)
        } else {
            None
        };
        let mask = match spec.mask {
            true => Some(operands.ints(&[rows, vocab.div_ceil(32)], &|_| -1)?),
            false => None,
        };
        Ok(Sample {
            logits: operands.activations(&[rows, vocab], spec.x)?,
            params: operands.floats(&[rows, params::COUNT], &|i| match i % params::COUNT {
                params::TOP_P | params::REPETITION_PENALTY => 1.0,
                params::MASK if spec.mask => (i / params::COUNT + 1) as f32,
                _ => 0.0,
            })?,
            history,
            mask,
            out: operands.output(&[rows], DType::I32)?,
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
