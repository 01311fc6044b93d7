//! Gradients of rotary position embedding, of the normalization before it and of the write to pages after it.
//!
//! The gradient of a turned head is turned back by the angle that the head was turned by, times `attention_scaling`; elements beyond the
//! pairs stay. With normalization, `x` being the head before, `r = 1 / sqrt(mean(x^2) + eps)`, `w` the scales with their offset and `g`
//! what was turned back: `dx = r * (g * w - x * r^2 * mean(g * w * x))`, and scales get `sum(g * x * r)` over all heads.
//! These sums are in an order that depends on shapes alone: the number of threads changes no bit.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::{QkNorm, RopeStyle};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Normalization of heads before they were turned, and its operands.
#[derive(Clone, Debug)]
pub struct QkNormGrad {
    /// Queries before normalization `[tokens, heads_q, head_dim]`.
    pub q: View,
    /// Keys before normalization `[tokens, heads_kv, head_dim]`.
    pub k: View,
    /// Scales.
    pub norm: QkNorm,
    /// Gradient of the scale of query heads `[head_dim]`; added to.
    pub d_q: Option<View>,
    /// Gradient of the scale of key heads `[head_dim]`; added to.
    pub d_k: Option<View>,
}

/// Gradients of the pages that keys and values went to: page `slot / page_size`, slot `slot % page_size` in it.
#[derive(Clone, Debug)]
pub struct KvRead {
    /// Gradient of the pages of keys `[pages, page_size, heads_kv, head_dim]`.
    pub dk_pages: View,
    /// Gradient of the pages of values, likewise.
    pub dv_pages: View,
    /// i32 `[tokens]`, different ones: the slot of each token; tokens of negative ones were not written and get nothing.
    pub slots: View,
    /// Gradient of the values `[tokens, heads_kv, head_dim]`; added to.
    pub dv: Option<View>,
}

/// `dq: [tokens, heads_q, head_dim]` in place; `dk: [tokens, heads_kv, head_dim]` in place or, with `kv`, added to. All f32.
#[derive(Clone, Debug)]
pub struct RopeGrad {
    /// Gradient of the queries `[tokens, heads_q, head_dim]`: of turned ones, replaced by that of those before.
    pub dq: View,
    /// Gradient of the keys `[tokens, heads_kv, head_dim]`: likewise, or, with `kv`, what its pages give is added.
    pub dk: View,
    /// i32 `[axes, tokens]`.
    pub positions: View,
    /// f32 `[pairs]`.
    pub inv_freq: View,
    /// i32 `[pairs]`: the axis of positions that turned each pair; without it axis 0.
    pub pair_axis: Option<View>,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Factor of the turned elements.
    pub attention_scaling: f32,
    /// Normalization before.
    pub norm: Option<QkNormGrad>,
    /// Pages that keys and values went to.
    pub kv: Option<KvRead>,
}

/// The key of a [`RopeGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeGradSpec {
    /// Tokens, bucketed.
    pub tokens: u32,
    /// Query heads.
    pub heads_q: u32,
    /// Key heads.
    pub heads_kv: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Pairs that were turned.
    pub pairs: u32,
    /// Axes of positions.
    pub axes: u32,
    /// Slots of a page; 0 without pages.
    pub page: u32,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Whether heads were normalized before.
    pub norm: bool,
    /// Whether a gradient of the scales is computed.
    pub weights: bool,
}

impl Op for RopeGrad {
    const NAME: &'static str = "rope_grad";
    type Spec = RopeGradSpec;

    fn spec(&self) -> Result<RopeGradSpec, ShapeError> {
        let Self { dq, dk, positions, inv_freq, .. } = self;
        check::rank("dq", dq, 3)?;
        check::dtype("dq", dq, DType::F32)?;
        check::rank("dk", dk, 3)?;
        check::dtype("dk", dk, DType::F32)?;
        let (tokens, head_dim, heads_kv, pairs) = (dq.size(0), dq.size(2), dk.size(1), inv_freq.size(0));
        check::shape("dk", dk, &[tokens, heads_kv, head_dim])?;
        check::rank("positions", positions, 2)?;
        check::dtype("positions", positions, DType::I32)?;
        check::shape("positions", positions, &[positions.size(0), tokens])?;
        check::rank("inv_freq", inv_freq, 1)?;
        check::dtype("inv_freq", inv_freq, DType::F32)?;
        if 2 * pairs > head_dim {
            return Err(ShapeError::mismatch("inv_freq axis 0", format!("at most {}", head_dim / 2), pairs));
        }
        if positions.size(0) == 0 {
            return Err(ShapeError::mismatch("positions axis 0", "at least one axis", 0));
        }
        let mut inputs = vec![("positions", positions), ("inv_freq", inv_freq)];
        if let Some(axis) = &self.pair_axis {
            check::dtype("pair_axis", axis, DType::I32)?;
            check::shape("pair_axis", axis, &[pairs])?;
            inputs.push(("pair_axis", axis));
        }
        let mut outputs = vec![("dq", dq), ("dk", dk)];
        if let Some(QkNormGrad { q, k, norm, d_q, d_k }) = &self.norm {
            for (name, view, of) in [("q", q, dq), ("k", k, dk)] {
                check::dtype(name, view, DType::F32)?;
                check::shape(name, view, of.shape())?;
                inputs.push((name, view));
            }
            for (name, view) in [("q norm", &norm.q), ("k norm", &norm.k)] {
                check::dtype(name, view, DType::F32)?;
                check::shape(name, view, &[head_dim])?;
                inputs.push((name, view));
            }
            for (name, view) in [("d_weight of q norm", d_q), ("d_weight of k norm", d_k)] {
                let Some(view) = view else { continue };
                check::dtype(name, view, DType::F32)?;
                check::shape(name, view, &[head_dim])?;
                outputs.push((name, view));
            }
        }
        let mut page = 0;
        if let Some(KvRead { dk_pages, dv_pages, slots, dv }) = &self.kv {
            check::rank("dk_pages", dk_pages, 4)?;
            page = dk_pages.size(1);
            for (name, view) in [("dk_pages", dk_pages), ("dv_pages", dv_pages)] {
                check::dtype(name, view, DType::F32)?;
                check::shape(name, view, &[dk_pages.size(0), page, heads_kv, head_dim])?;
                inputs.push((name, view));
            }
            check::dtype("slots", slots, DType::I32)?;
            check::shape("slots", slots, &[tokens])?;
            inputs.push(("slots", slots));
            if let Some(dv) = dv {
                check::dtype("dv", dv, DType::F32)?;
                check::shape("dv", dv, dk.shape())?;
                outputs.push(("dv", dv));
            }
        }
        for (place, (name, view)) in outputs.iter().enumerate() {
            check::output(name, view, inputs.iter().chain(&outputs[..place]).copied())?;
        }
        Ok(RopeGradSpec {
            tokens: bucket(tokens),
            heads_q: dq.size(1) as u32,
            heads_kv: heads_kv as u32,
            head_dim: head_dim as u32,
            pairs: pairs as u32,
            axes: positions.size(0) as u32,
            page: page as u32,
            style: self.style,
            norm: self.norm.is_some(),
            weights: self.norm.as_ref().is_some_and(|norm| norm.d_q.is_some() || norm.d_k.is_some()),
        })
    }

    fn cost(&self) -> Cost {
        let (heads, values) = (self.dq.bytes() + self.dk.bytes(), self.dk.bytes());
        let normalized = self.norm.as_ref().map_or(0, |norm| norm.q.bytes() + norm.k.bytes());
        let of_values = self.kv.as_ref().is_some_and(|kv| kv.dv.is_some());
        let of_pages = if self.kv.is_some() { values } else { 0 };
        let (read, written) = if of_values { (2 * values, values) } else { (0, 0) };
        let each = if self.norm.is_some() { 10 } else { 3 };
        Cost {
            flops: each * (self.dq.len() + self.dk.len()) as u64,
            read: heads + normalized + of_pages + read,
            written: heads + written,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::InOut, &mut self.dq);
        visit(Access::InOut, &mut self.dk);
        visit(Access::In, &mut self.positions);
        visit(Access::In, &mut self.inv_freq);
        if let Some(axis) = &mut self.pair_axis {
            visit(Access::In, axis);
        }
        if let Some(QkNormGrad { q, k, norm, d_q, d_k }) = &mut self.norm {
            [q, k, &mut norm.q, &mut norm.k].into_iter().for_each(|view| visit(Access::In, view));
            [d_q, d_k].into_iter().flatten().for_each(|view| visit(Access::InOut, view));
        }
        if let Some(KvRead { dk_pages, dv_pages, slots, dv }) = &mut self.kv {
            [dk_pages, dv_pages, slots].into_iter().for_each(|view| visit(Access::In, view));
            dv.iter_mut().for_each(|view| visit(Access::InOut, view));
        }
    }

    fn of_spec(spec: &RopeGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (tokens, d) = (spec.tokens as usize, spec.head_dim as usize);
        let (heads_q, heads_kv) = (spec.heads_q as usize, spec.heads_kv as usize);
        let (pairs, page) = (spec.pairs as usize, spec.page as usize);
        let (of_q, of_k) = ([tokens, heads_q, d], [tokens, heads_kv, d]);
        let kv = if page > 0 {
            let shape = [tokens.div_ceil(page), page, heads_kv, d];
            Some(KvRead {
                dk_pages: operands.activations(&shape, DType::F32)?,
                dv_pages: operands.activations(&shape, DType::F32)?,
                slots: operands.ints(&[tokens], &|i| i as i32)?,
                dv: Some(operands.output(&of_k, DType::F32)?),
            })
        } else {
            None
        };
        let norm = if spec.norm {
            let mut weight = || spec.weights.then(|| operands.output(&[d], DType::F32)).transpose();
            let (d_q, d_k) = (weight()?, weight()?);
            Some(QkNormGrad {
                q: operands.activations(&of_q, DType::F32)?,
                k: operands.activations(&of_k, DType::F32)?,
                norm: QkNorm {
                    q: operands.table(&[d], DType::F32)?,
                    k: operands.table(&[d], DType::F32)?,
                    weight_offset: 0.0,
                    eps: 1e-6,
                },
                d_q,
                d_k,
            })
        } else {
            None
        };
        Ok(RopeGrad {
            dq: operands.activations(&of_q, DType::F32)?,
            dk: operands.activations(&of_k, DType::F32)?,
            positions: operands
                .ints(&[spec.axes.max(1) as usize, tokens], &|i| (i % tokens.max(1)) as i32)?,
            inv_freq: operands.floats(&[pairs], &|i| 10_000_f32.powf(-(i as f32) / pairs as f32))?,
            pair_axis: None,
            style: spec.style,
            attention_scaling: 1.0,
            norm,
            kv,
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
impl crate::wgpu::WgpuOp for RopeGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for RopeGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
