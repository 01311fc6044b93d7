//! The gated delta rule: a recurrent layer whose state, a matrix of each head, forgets and is corrected at every token.
//!
//! With `q` and `k` of unit length (`q` over `sqrt(d_k)` then), `decay = exp(-rate * softplus(a + bias))`, `beta = sigmoid(b)`:
//! `S = decay * S; S += k (x) beta * (v - k S); out = q S`. Value head `j` goes with key head `j / (heads_v / heads_k)`.

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
use super::sequences::Sequences;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Added to sums of squares of queries and keys.
const EPS: f32 = 1e-6;

/// `qkv: [rows, 2 heads_k d_k + heads_v d_v]  gates: [rows, 2 heads_v]  state: f32 [slots, heads_v d_k, d_v]  ->
/// out: [rows, heads_v d_v]`, the state in place.
#[derive(Clone, Debug)]
pub struct GatedDelta {
    /// Queries of all heads, keys of all heads, values of all heads.
    pub qkv: View,
    /// `b` of all heads, `a` of all heads.
    pub gates: View,
    /// f32 `[2, heads_v]`: rates of decay, which are positive, and what is added to `a`.
    pub decay: View,
    /// f32 `[slots, heads_v d_k, d_v]`, dense.
    pub state: View,
    /// Which rows and states belong together.
    pub seqs: Sequences,
    /// Result `[rows, heads_v d_v]`.
    pub out: View,
}

/// The key of a [`GatedDelta`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct GatedDeltaSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Sequences, bucketed.
    pub seqs: u32,
    /// Most rows of a sequence, bucketed.
    pub most: u32,
    /// Heads of queries and keys.
    pub heads_k: u32,
    /// Heads of values.
    pub heads_v: u32,
    /// Elements of a query or key.
    pub d_k: u32,
    /// Elements of a value.
    pub d_v: u32,
    /// Type of queries, keys, values and gates.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

/// Sizes of the heads.
#[derive(Clone, Copy, Debug)]
struct Heads {
    k: usize,
    v: usize,
    d_k: usize,
    d_v: usize,
}

impl Heads {
    /// Columns of `qkv` where query, key and value of a value head begin.
    fn columns(self, head: usize) -> (usize, usize, usize) {
        let key = head / (self.v / self.k) * self.d_k;
        (key, self.k * self.d_k + key, 2 * self.k * self.d_k + head * self.d_v)
    }
}

impl GatedDelta {
    /// Sizes of the heads, from those of the operands.
    fn heads(&self) -> Result<Heads, ShapeError> {
        let (v, d_v) = (self.gates.size(1) / 2, self.state.size(2));
        let d_k = self.state.size(1).checked_div(v).unwrap_or(0);
        let k = self.qkv.size(1).saturating_sub(v * d_v).checked_div(2 * d_k).unwrap_or(0);
        if k == 0 || !v.is_multiple_of(k) || d_v == 0 {
            return Err(ShapeError::mismatch(
                "heads",
                "columns of qkv, gates and state of some heads, those of values a multiple of those of keys",
                format!("{}, {} and {:?}", self.qkv.size(1), self.gates.size(1), self.state.shape()),
            ));
        }
        Ok(Heads { k, v, d_k, d_v })
    }
}

impl Op for GatedDelta {
    const NAME: &'static str = "gated_delta";
    type Spec = GatedDeltaSpec;

    fn spec(&self) -> Result<GatedDeltaSpec, ShapeError> {
        let Self { qkv, gates, decay, state, seqs, out } = self;
        check::rank("qkv", qkv, 2)?;
        check::float("qkv", qkv)?;
        check::rank("gates", gates, 2)?;
        check::dtype("gates", gates, qkv.dtype())?;
        check::rank("state", state, 3)?;
        check::dtype("state", state, DType::F32)?;
        check::dense("state", state)?;
        let (rows, heads) = (qkv.size(0), self.heads()?);
        let Heads { k, v, d_k, d_v } = heads;
        check::shape("qkv", qkv, &[rows, 2 * k * d_k + v * d_v])?;
        check::shape("gates", gates, &[rows, 2 * v])?;
        check::shape("decay", decay, &[2, v])?;
        check::dtype("decay", decay, DType::F32)?;
        check::shape("state", state, &[state.size(0), v * d_k, d_v])?;
        check::shape("out", out, &[rows, v * d_v])?;
        check::float("out", out)?;
        let inputs = [("qkv", qkv), ("gates", gates), ("decay", decay)];
        check::output("out", out, inputs.into_iter().chain([("state", state)]))?;
        check::output("state", state, inputs)?;
        seqs.check(&[("out", out), ("state", state)])?;
        Ok(GatedDeltaSpec {
            rows: bucket(rows),
            seqs: bucket(seqs.count()),
            most: bucket(seqs.most),
            heads_k: k as u32,
            heads_v: v as u32,
            d_k: d_k as u32,
            d_v: d_v as u32,
            x: qkv.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        let states = (self.seqs.count() * self.state.size(1) * self.state.size(2)) as u64;
        let each = (self.state.size(1) * self.state.size(2)) as u64;
        Cost {
            flops: 7 * self.qkv.size(0) as u64 * each,
            read: self.qkv.bytes() + self.gates.bytes() + 4 * states,
            written: self.out.bytes() + 4 * states,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        for view in [&mut self.qkv, &mut self.gates, &mut self.decay] {
            visit(Access::In, view);
        }
        self.seqs.visit(visit);
        visit(Access::InOut, &mut self.state);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &GatedDeltaSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, seqs) = (spec.rows as usize, spec.seqs as usize);
        let (k, v) = (spec.heads_k as usize, spec.heads_v as usize);
        let (d_k, d_v) = (spec.d_k as usize, spec.d_v as usize);
        Ok(GatedDelta {
            qkv: operands.activations(&[rows, 2 * k * d_k + v * d_v], spec.x)?,
            gates: operands.activations(&[rows, 2 * v], spec.x)?,
            decay: operands.floats(&[2, v], &|i| if i < v { 1.0 } else { 0.0 })?,
            state: operands.output(&[seqs, v * d_k, d_v], DType::F32)?,
            seqs: Sequences::of_spec(rows, seqs, spec.most as usize, operands)?,
            out: operands.output(&[rows, v * d_v], spec.out)?,
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
