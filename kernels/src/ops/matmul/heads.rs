//! What may follow a product of queries, keys and values at once: their rotation, and the way of keys and values into the pages.

use serde::{Deserialize, Serialize};

use super::Matmul;
use crate::buffer::View;
use crate::op::Access;
use crate::operands::Operands;
use crate::ops::rope::{KvWrite, Rope, RopeStyle};
use crate::ops::{check, kept};
use crate::spec::{DType, KernelError, ShapeError};

/// Columns of a product as heads: `heads_q` of queries, `heads_kv` of keys, `heads_kv` of values. Queries and keys are turned as
/// [`Rope`] turns them, keys and values go to their pages; the result of the op is the queries alone.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads_q: usize,
    /// Heads of keys, and of values.
    pub heads_kv: usize,
    /// i32 `[axes, m]`.
    pub positions: View,
    /// f32 `[pairs]`.
    pub inv_freq: View,
    /// i32 `[pairs]`: the axis of positions that turns each pair; without it axis 0.
    pub pair_axis: Option<View>,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// Factor of the turned elements.
    pub attention_scaling: f32,
    /// Pages of keys, see [`KvWrite`].
    pub k_pages: View,
    /// Pages of values.
    pub v_pages: View,
    /// i32 `[m]`: the slot of each row; negative ones are not written.
    pub slots: View,
}

/// The part of a product's key that tells its [`Heads`]: all 0 where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct HeadsSpec {
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
    /// Type of the pages.
    pub kv_dtype: DType,
    /// Slots of a page.
    pub page: u32,
    /// Which elements form a pair.
    pub style: RopeStyle,
}

impl Heads {
    /// What `rope` does to the columns of a product, if an epilogue can: it writes pages, and normalizes no heads.
    #[must_use]
    pub fn of(rope: &Rope) -> Option<Self> {
        let kv = rope.kv.as_ref().filter(|_| rope.norm.is_none())?;
        Some(Self {
            heads_q: rope.q.size(1),
            heads_kv: rope.k.size(1),
            positions: rope.positions.clone(),
            inv_freq: rope.inv_freq.clone(),
            pair_axis: rope.pair_axis.clone(),
            style: rope.style,
            attention_scaling: rope.attention_scaling,
            k_pages: kv.k_pages.clone(),
            v_pages: kv.v_pages.clone(),
            slots: kv.slots.clone(),
        })
    }

    /// Heads of all kinds.
    #[must_use]
    pub fn all(&self) -> usize {
        self.heads_q + 2 * self.heads_kv
    }

    /// The op that does the same to rows `[m, n]` of a product, in place, but for keys and values.
    pub(super) fn rope(&self, rows: &View) -> Result<Rope, KernelError> {
        let head_dim = rows.size(1) / self.all().max(1);
        let part = |first: usize, heads: usize| {
            rows.narrow(1, first * head_dim, heads * head_dim)?.reshape(&[rows.size(0), heads, head_dim])
        };
        Ok(Rope {
            q: part(0, self.heads_q)?,
            k: part(self.heads_q, self.heads_kv)?,
            positions: self.positions.clone(),
            inv_freq: self.inv_freq.clone(),
            pair_axis: self.pair_axis.clone(),
            style: self.style,
            attention_scaling: self.attention_scaling,
            norm: None,
            kv: Some(KvWrite {
                v: part(self.heads_q + self.heads_kv, self.heads_kv)?,
                k_pages: self.k_pages.clone(),
                v_pages: self.v_pages.clone(),
                slots: self.slots.clone(),
            }),
        })
    }

    /// The check of everything but the product, and the key.
    pub(super) fn spec(&self, op: &Matmul) -> Result<HeadsSpec, ShapeError> {
        let Self { positions, inv_freq, k_pages, v_pages, slots, .. } = self;
        let (m, n) = (op.x.size(0), op.w.n());
        if op.gated || op.act != super::Activation::None || op.residual.is_some() {
            return Err(ShapeError::new("heads: expected a product and its bias alone"));
        }
        if self.all() == 0 || !n.is_multiple_of(self.all()) {
            return Err(ShapeError::mismatch("w axis n", format!("a multiple of {} heads", self.all()), n));
        }
        let (head_dim, pairs) = (n / self.all(), inv_freq.size(0));
        check::rank("positions", positions, 2)?;
        check::dtype("positions", positions, DType::I32)?;
        check::shape("positions", positions, &[positions.size(0).max(1), m])?;
        check::rank("inv_freq", inv_freq, 1)?;
        check::dtype("inv_freq", inv_freq, DType::F32)?;
        if 2 * pairs > head_dim {
            return Err(ShapeError::mismatch("inv_freq axis 0", format!("at most {}", head_dim / 2), pairs));
        }
        if let Some(axis) = &self.pair_axis {
            check::dtype("pair_axis", axis, DType::I32)?;
            check::shape("pair_axis", axis, &[pairs])?;
        }
        check::rank("k_pages", k_pages, 4)?;
        kept::heads("k_pages", k_pages, head_dim)?;
        kept::heads("v_pages", v_pages, head_dim)?;
        let (page, kv_dtype) = (k_pages.size(1), k_pages.dtype());
        let elements = kept::kept_elements(head_dim, kv_dtype);
        check::shape("k_pages", k_pages, &[k_pages.size(0), page, self.heads_kv, elements])?;
        check::shape("v_pages", v_pages, k_pages.shape())?;
        check::dtype("v_pages", v_pages, kv_dtype)?;
        check::dtype("slots", slots, DType::I32)?;
        check::shape("slots", slots, &[m])?;
        let read = || [("x", &op.x), ("out", &op.out), ("positions", positions), ("slots", slots)];
        check::output("k_pages", k_pages, read().into_iter().chain([("v_pages", v_pages)]))?;
        check::output("v_pages", v_pages, read())?;
        Ok(HeadsSpec {
            heads_q: self.heads_q as u32,
            heads_kv: self.heads_kv as u32,
            head_dim: head_dim as u32,
            pairs: pairs as u32,
            axes: positions.size(0) as u32,
            kv_dtype,
            page: page as u32,
            style: self.style,
        })
    }

    /// Bytes of keys and values of `m` rows in the pages.
    pub(super) fn kept_bytes(&self, m: usize) -> u64 {
        (2 * m * self.heads_kv * self.k_pages.size(3) * self.k_pages.dtype().size()) as u64
    }

    pub(super) fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.positions);
        visit(Access::In, &mut self.inv_freq);
        if let Some(axis) = &mut self.pair_axis {
            visit(Access::In, axis);
        }
        visit(Access::In, &mut self.slots);
        visit(Access::InOut, &mut self.k_pages);
        visit(Access::InOut, &mut self.v_pages);
    }
}

impl HeadsSpec {
    /// Whether there are heads.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.heads_q + self.heads_kv > 0
    }

    /// Heads of a spec on operands that `operands` gives.
    pub(super) fn operands(&self, m: usize, operands: &mut dyn Operands) -> Result<Heads, KernelError> {
        let (page, pairs) = (self.page.max(1) as usize, self.pairs as usize);
        let elements = kept::kept_elements(self.head_dim as usize, self.kv_dtype);
        let shape = [m.div_ceil(page).max(1), page, self.heads_kv as usize, elements];
        Ok(Heads {
            heads_q: self.heads_q as usize,
            heads_kv: self.heads_kv as usize,
            positions: operands.ints(&[self.axes.max(1) as usize, m], &|i| (i % m.max(1)) as i32)?,
            inv_freq: operands.floats(&[pairs], &|i| 10_000_f32.powf(-(i as f32) / pairs as f32))?,
            pair_axis: None,
            style: self.style,
            attention_scaling: 1.0,
            k_pages: operands.output(&shape, self.kv_dtype)?,
            v_pages: operands.output(&shape, self.kv_dtype)?,
            slots: operands.ints(&[m], &|i| i as i32)?,
        })
    }
}
