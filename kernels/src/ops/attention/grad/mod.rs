//! Gradients of attention.
//!
//! With `p` the weights that [`Attention`] gives the keys, `s` its scores before the softmax and `dp[i, j] = d_out[i] . v[j]`:
//!
//! ```text
//! ds[i, j] = p[i, j] * (dp[i, j] - sum_j p[i, j] * dp[i, j]) * scale * cap'(s[i, j])
//! dq[i] += sum_j ds[i, j] * k[j]      dk[j] += sum_i ds[i, j] * q[i]      dv[j] += sum_i p[i, j] * d_out[i]
//! ```
//!
//! Keys and values sum over the queries that see them and over the query heads of their group. Weights are computed again, for a block
//! of queries at a time. Rows that see nothing give nothing, whatever `q` and `d_out` hold there. As in the forward op, what lies outside
//! of the keys that a sequence's queries together see has no influence, and the gradients of it stay as they are. Sums are in an order
//! that depends on shapes alone: the number of threads changes no bit.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::{Attention, AttentionKv, AttentionSpec, Inputs, Seen, of_spec};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `d_out: [tokens, heads_q, head_dim]  ->  dq += ..., dk += ..., dv += ...`, all f32.
#[derive(Clone, Debug)]
pub struct AttentionGrad {
    /// Queries `[tokens, heads_q, head_dim]`; tokens and heads may be strided.
    pub q: View,
    /// Keys and values.
    pub kv: AttentionKv,
    /// i32 `[seqs + 1]`: the first row of each sequence in `q`, ascending.
    pub q_starts: View,
    /// Which keys a query sees.
    pub seen: Seen,
    /// Factor of the scores.
    pub scale: f32,
    /// Scores became `softcap * tanh(score / softcap)`; 0 is off.
    pub softcap: f32,
    /// Host bound of the queries of one sequence.
    pub max_q: usize,
    /// Host bound of the keys of one sequence.
    pub max_kv: usize,
    /// Pairs of a query and a key that it sees, over all sequences and one head: for [`Op::cost`] only.
    pub pairs: u64,
    /// Gradient of the result, of the shape of `q`.
    pub d_out: View,
    /// Gradient of the queries, of the shape of `q`; added to.
    pub dq: Option<View>,
    /// Gradient of the keys, of the shape of `k` (pages, where they lie in pages); added to.
    pub dk: Option<View>,
    /// Gradient of the values, likewise.
    pub dv: Option<View>,
}

/// The key of an [`AttentionGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct AttentionGradSpec {
    /// Sequences, bucketed.
    pub seqs: u32,
    /// Most queries of one sequence, bucketed.
    pub q: u32,
    /// Most keys of one sequence, bucketed.
    pub kv: u32,
    /// Query heads.
    pub heads_q: u32,
    /// Key heads.
    pub heads_kv: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Slots of a page; 0 where keys are packed.
    pub page: u32,
    /// Whether later keys are hidden.
    pub causal: bool,
    /// Sliding window; 0 is none.
    pub window: u32,
    /// Whether each row has a range of its own.
    pub ranges: bool,
    /// Whether scores are capped.
    pub softcap: bool,
    /// Whether the gradient of the queries is computed.
    pub dq: bool,
    /// Whether that of the keys is.
    pub dk: bool,
    /// Whether that of the values is.
    pub dv: bool,
}

impl AttentionGrad {
    /// The op whose gradients these are, with the gradient of its result in the place of the result.
    fn forward(&self) -> Attention {
        Attention {
            q: self.q.clone(),
            kv: self.kv.clone(),
            q_starts: self.q_starts.clone(),
            seen: self.seen.clone(),
            scale: self.scale,
            softcap: self.softcap,
            out: self.d_out.clone(),
            max_q: self.max_q,
            max_kv: self.max_kv,
            pairs: self.pairs,
        }
    }
}

impl Op for AttentionGrad {
    const NAME: &'static str = "attention_grad";
    type Spec = AttentionGradSpec;

    fn spec(&self) -> Result<AttentionGradSpec, ShapeError> {
        let Self { q, d_out, .. } = self;
        let Inputs { k, v, page, heads_kv } =
            Inputs::check(q, &self.kv, &self.q_starts, &self.seen, self.max_kv)?;
        for (name, view) in [("q", q), ("k", k), ("v", v), ("d_out", d_out)] {
            check::dtype(name, view, DType::F32)?;
        }
        check::shape("d_out", d_out, q.shape())?;
        let inputs = [("q", q), ("k", k), ("v", v), ("d_out", d_out)];
        let gradients = [("dq", &self.dq, q), ("dk", &self.dk, k), ("dv", &self.dv, v)];
        for (place, (name, gradient, of)) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            check::dtype(name, gradient, DType::F32)?;
            check::shape(name, gradient, of.shape())?;
            let before =
                gradients[..place].iter().filter_map(|(name, view, _)| Some((*name, view.as_ref()?)));
            check::output(name, gradient, inputs.into_iter().chain(before).chain(self.indices()))?;
        }
        let (causal, window) = self.seen.causal();
        Ok(AttentionGradSpec {
            seqs: bucket(self.q_starts.size(0) - 1),
            q: bucket(self.max_q),
            kv: bucket(self.max_kv),
            heads_q: q.size(1) as u32,
            heads_kv: heads_kv as u32,
            head_dim: q.size(2) as u32,
            page: page as u32,
            causal,
            window: window as u32,
            ranges: matches!(self.seen, Seen::Ranges { .. }),
            softcap: self.softcap > 0.0,
            dq: self.dq.is_some(),
            dk: self.dk.is_some(),
            dv: self.dv.is_some(),
        })
    }

    fn cost(&self) -> Cost {
        let heads = self.pairs * (self.q.size(1) * self.q.size(2)) as u64;
        let [dq, dk, dv] = [&self.dq, &self.dk, &self.dv].map(|view| u64::from(view.is_some()));
        // Scores; products with the gradient of the result; then one for each gradient.
        let products = dq.max(dk).max(dv) + dq.max(dk) + dq + dk + dv;
        let forward = self.forward().cost();
        let gradients = [&self.dq, &self.dk, &self.dv].into_iter().flatten();
        // Of pages that not all belong to these sequences, no more is touched than keys are read.
        let touched: u64 = gradients.map(|view| view.bytes().min(forward.read)).sum();
        Cost {
            flops: 2 * products * heads,
            read: forward.read + self.d_out.bytes() + touched,
            written: touched,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.q);
        visit(Access::In, &mut self.q_starts);
        match &mut self.kv {
            AttentionKv::Packed { k, v, kv_starts } => {
                [k, v, kv_starts].into_iter().for_each(|view| visit(Access::In, view));
            }
            AttentionKv::Paged { k, v, block_table, kv_lens } => {
                [k, v, block_table, kv_lens].into_iter().for_each(|view| visit(Access::In, view));
            }
        }
        if let Seen::Ranges { from, to } = &mut self.seen {
            from.iter_mut().for_each(|from| visit(Access::In, from));
            visit(Access::In, to);
        }
        visit(Access::In, &mut self.d_out);
        for gradient in [&mut self.dq, &mut self.dk, &mut self.dv].into_iter().flatten() {
            visit(Access::InOut, gradient);
        }
    }

    fn of_spec(spec: &AttentionGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let forward = AttentionSpec {
            seqs: spec.seqs,
            q: spec.q,
            kv: spec.kv,
            heads_q: spec.heads_q,
            heads_kv: spec.heads_kv,
            head_dim: spec.head_dim,
            x: DType::F32,
            kv_dtype: DType::F32,
            page: spec.page,
            causal: spec.causal,
            window: spec.window,
            ranges: spec.ranges,
            softcap: spec.softcap,
        };
        let forward = of_spec::attention(&forward, operands)?;
        let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &forward.kv;
        let mut gradient =
            |wanted: bool, of: &View| wanted.then(|| operands.output(of.shape(), DType::F32)).transpose();
        let (dq, dk, dv) = (gradient(spec.dq, &forward.q)?, gradient(spec.dk, k)?, gradient(spec.dv, v)?);
        Ok(AttentionGrad {
            d_out: operands.activations(forward.q.shape(), DType::F32)?,
            q: forward.q,
            kv: forward.kv,
            q_starts: forward.q_starts,
            seen: forward.seen,
            scale: forward.scale,
            softcap: forward.softcap,
            max_q: forward.max_q,
            max_kv: forward.max_kv,
            pairs: forward.pairs,
            dq,
            dk,
            dv,
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

impl AttentionGrad {
    /// Index operands by name.
    fn indices(&self) -> impl Iterator<Item = (&str, &View)> {
        let of_keys = match &self.kv {
            AttentionKv::Packed { kv_starts, .. } => [Some(("kv_starts", kv_starts)), None],
            AttentionKv::Paged { block_table, kv_lens, .. } => {
                [Some(("block_table", block_table)), Some(("kv_lens", kv_lens))]
            }
        };
        let of_rows = match &self.seen {
            Seen::Ranges { from, to } => {
                [from.as_ref().map(|from| ("seen from", from)), Some(("seen to", to))]
            }
            Seen::All | Seen::Causal { .. } => [None, None],
        };
        [("q_starts", &self.q_starts)].into_iter().chain(of_keys.into_iter().chain(of_rows).flatten())
    }
}

#[cfg(feature = "wgpu")]
impl crate::wgpu::WgpuOp for AttentionGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for AttentionGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
