//! Rotary position embedding of queries and keys, with their normalization before and the write to the KV pages after.
//!
//! Pair `p` of a head is turned by `angle = f32(position) * inv_freq[p]`, the product rounded to f32:
//! `(a, b) -> (a cos - b sin, b cos + a sin) * attention_scaling`. Half style pairs element `p` with `p + pairs`,
//! interleaved style `2 p` with `2 p + 1`. Elements beyond the pairs stay.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
pub(in crate::ops) mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

pub use grad::{KvRead, QkNormGrad, RopeGrad, RopeGradSpec};
use serde::{Deserialize, Serialize};

use super::{check, kept};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, MANY, ShapeError, bucket};

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeStyle {
    /// `p` and `p + pairs`.
    #[default]
    Half,
    /// `2 p` and `2 p + 1`.
    Interleaved,
}

/// RMS normalization of each head before it is turned.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// Scale of query heads `[head_dim]`.
    pub q: View,
    /// Scale of key heads `[head_dim]`.
    pub k: View,
    /// Added to each scale.
    pub weight_offset: f32,
    /// Added to the mean square.
    pub eps: f32,
}

/// Where keys and values go: page `slot / page_size`, slot `slot % page_size` in it.
#[derive(Clone, Debug)]
pub struct KvWrite {
    /// Values `[tokens, heads_kv, head_dim]`, written as they are.
    pub v: View,
    /// Pages of keys `[pages, page_size, heads_kv, head_dim]`, of i8 `[pages, page_size, heads_kv, head_dim + SCALE_BYTES]`.
    pub k_pages: View,
    /// Pages of values, likewise.
    pub v_pages: View,
    /// i32 `[tokens]`: the slot of each token; negative ones are not written.
    pub slots: View,
}

/// `q: [tokens, heads_q, head_dim]  k: [tokens, heads_kv, head_dim]`: `q` is turned in place, `k` in place or, with
/// `kv`, into its pages (`k` itself then stays).
#[derive(Clone, Debug)]
pub struct Rope {
    /// Queries `[tokens, heads_q, head_dim]`.
    pub q: View,
    /// Keys `[tokens, heads_kv, head_dim]`.
    pub k: View,
    /// i32 `[axes, tokens]`.
    pub positions: View,
    /// f32 `[pairs]`.
    pub inv_freq: View,
    /// i32 `[pairs]`: the axis of positions that turns each pair; without it axis 0.
    pub pair_axis: Option<View>,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Factor of the turned elements.
    pub attention_scaling: f32,
    /// Normalization before.
    pub norm: Option<QkNorm>,
    /// Write to pages after.
    pub kv: Option<KvWrite>,
}

/// The key of a [`Rope`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeSpec {
    /// Tokens, bucketed.
    pub tokens: u32,
    /// Query heads.
    pub heads_q: u32,
    /// Key heads.
    pub heads_kv: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Pairs that are turned.
    pub pairs: u32,
    /// Axes of positions.
    pub axes: u32,
    /// Type of queries and keys.
    pub x: DType,
    /// Type of the pages.
    pub kv_dtype: DType,
    /// Slots of a page; 0 without pages.
    pub page: u32,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Whether heads are normalized before.
    pub norm: bool,
}

impl Op for Rope {
    const NAME: &'static str = "rope";
    type Spec = RopeSpec;

    fn spec(&self) -> Result<RopeSpec, ShapeError> {
        let Self { q, k, positions, inv_freq, .. } = self;
        check::rank("q", q, 3)?;
        check::float("q", q)?;
        check::rank("k", k, 3)?;
        check::dtype("k", k, q.dtype())?;
        let (tokens, head_dim, heads_kv, pairs) = (q.size(0), q.size(2), k.size(1), inv_freq.size(0));
        check::shape("k", k, &[tokens, heads_kv, head_dim])?;
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
        if let Some(axis) = &self.pair_axis {
            check::dtype("pair_axis", axis, DType::I32)?;
            check::shape("pair_axis", axis, &[pairs])?;
        }
        if let Some(norm) = &self.norm {
            for (name, view) in [("q norm", &norm.q), ("k norm", &norm.k)] {
                check::float(name, view)?;
                check::shape(name, view, &[head_dim])?;
            }
        }
        check::output("q", q, [("k", k)])?;
        check::output("k", k, [])?;
        let (mut page, mut kv_dtype) = (0, q.dtype());
        if let Some(kv) = &self.kv {
            check::shape("v", &kv.v, k.shape())?;
            check::dtype("v", &kv.v, q.dtype())?;
            check::rank("k_pages", &kv.k_pages, 4)?;
            kept::heads("k_pages", &kv.k_pages, head_dim)?;
            kept::heads("v_pages", &kv.v_pages, head_dim)?;
            page = kv.k_pages.size(1);
            kv_dtype = kv.k_pages.dtype();
            let kept = kept::kept_elements(head_dim, kv_dtype);
            check::shape("k_pages", &kv.k_pages, &[kv.k_pages.size(0), page, heads_kv, kept])?;
            check::shape("v_pages", &kv.v_pages, kv.k_pages.shape())?;
            check::dtype("v_pages", &kv.v_pages, kv_dtype)?;
            check::dtype("slots", &kv.slots, DType::I32)?;
            check::shape("slots", &kv.slots, &[tokens])?;
            check::output(
                "k_pages",
                &kv.k_pages,
                [("q", q), ("k", k), ("v", &kv.v), ("v_pages", &kv.v_pages)],
            )?;
            check::output("v_pages", &kv.v_pages, [("q", q), ("k", k), ("v", &kv.v)])?;
            check::output("q", q, [("v", &kv.v)])?;
        }
        Ok(RopeSpec {
            tokens: bucket(tokens),
            heads_q: q.size(1) as u32,
            heads_kv: heads_kv as u32,
            head_dim: head_dim as u32,
            pairs: pairs as u32,
            axes: positions.size(0) as u32,
            x: q.dtype(),
            kv_dtype,
            page: page as u32,
            style: self.style,
            norm: self.norm.is_some(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|tokens| Self::Spec { tokens, ..*spec })
    }

    fn cost(&self) -> Cost {
        let values = self.kv.as_ref().map_or(0, |kv| kv.v.bytes());
        let kept = match &self.kv {
            Some(kv) => {
                let heads = 2 * self.k.size(0) * self.k.size(1);
                heads * kv.k_pages.size(3) * kv.k_pages.dtype().size()
            }
            None => self.k.len() * self.k.dtype().size(),
        };
        Cost {
            flops: 3 * (self.q.len() + self.k.len()) as u64,
            read: self.q.bytes() + self.k.bytes() + values,
            written: self.q.bytes() + kept as u64,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::InOut, &mut self.q);
        let in_place = self.kv.is_none();
        visit(if in_place { Access::InOut } else { Access::In }, &mut self.k);
        visit(Access::In, &mut self.positions);
        visit(Access::In, &mut self.inv_freq);
        if let Some(axis) = &mut self.pair_axis {
            visit(Access::In, axis);
        }
        if let Some(norm) = &mut self.norm {
            visit(Access::In, &mut norm.q);
            visit(Access::In, &mut norm.k);
        }
        if let Some(kv) = &mut self.kv {
            visit(Access::In, &mut kv.v);
            visit(Access::In, &mut kv.slots);
            visit(Access::InOut, &mut kv.k_pages);
            visit(Access::InOut, &mut kv.v_pages);
        }
    }

    fn of_spec(spec: &RopeSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (tokens, d) = (spec.tokens as usize, spec.head_dim as usize);
        let (heads_q, heads_kv) = (spec.heads_q as usize, spec.heads_kv as usize);
        let pairs = spec.pairs as usize;
        let page = spec.page as usize;
        let kv = if page > 0 {
            let shape = [tokens.div_ceil(page), page, heads_kv, kept::kept_elements(d, spec.kv_dtype)];
            Some(KvWrite {
                v: operands.activations(&[tokens, heads_kv, d], spec.x)?,
                k_pages: operands.output(&shape, spec.kv_dtype)?,
                v_pages: operands.output(&shape, spec.kv_dtype)?,
                slots: operands.ints(&[tokens], &|i| i as i32)?,
            })
        } else {
            None
        };
        Ok(Rope {
            q: operands.activations(&[tokens, heads_q, d], spec.x)?,
            k: operands.activations(&[tokens, heads_kv, d], spec.x)?,
            positions: operands
                .ints(&[spec.axes.max(1) as usize, tokens], &|i| (i % tokens.max(1)) as i32)?,
            inv_freq: operands.floats(&[pairs], &|i| 10_000_f32.powf(-(i as f32) / pairs as f32))?,
            pair_axis: None,
            style: spec.style,
            attention_scaling: 1.0,
            norm: None,
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
