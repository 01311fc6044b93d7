//! Attention to rows that are no tokens: a memory that a request has, of pictures or of what an encoder made of its source. Its keys
//! and values are kept in pages of their own, written with the first tokens of a sequence.

use ocelli_engine::batch::Packed;
use ocelli_engine::kv::KvCache;
use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::View;
use ocelli_kernels::ops::ScatterRows;

use super::TextPlan;
use super::paged::paged;
use crate::layers::{Linear, Norm, Stacked, copy_rows};

/// Attention of a decoder to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrossPlan {
    /// Features of a row of memory.
    pub memory: usize,
    /// Name of the module.
    pub module: &'static str,
    /// Names of the query, key and value projections in it.
    pub qkv: [&'static str; 3],
    /// Name of the output projection in it.
    pub out: &'static str,
    /// Name of the norm around it in the layer, where it follows the attention to tokens.
    pub norm: &'static str,
    /// Names in the layer of what `tanh` makes factors of what it and the MLP after it add, where it stands in place of the attention
    /// to tokens.
    pub gates: [&'static str; 2],
}

/// Projections to queries, and of the memory to keys and values; norms of queries and keys.
pub(super) struct Cross {
    path: String,
    pub q: Stacked,
    k: Linear,
    v: Linear,
    qk: Option<(Norm, Norm)>,
    /// Group of the cache, and the layer's number in it.
    place: (usize, usize),
}

impl Cross {
    /// Loads the projections at `scope`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        plan: &TextPlan,
        cross: &CrossPlan,
        place: (usize, usize),
    ) -> Result<Self> {
        let (q_rows, kv_rows) = (plan.heads_q * plan.head_dim, plan.heads_kv * plan.head_dim);
        let [q, k, v] = cross.qkv.map(|name| scope.at(name));
        let norm = |cx: &mut Ctx, name: &str| {
            Norm::unshifted(cx, &scope.at(name), plan.head_dim, plan.norm, (plan.norm_eps, plan.norm_offset))
        };
        let [q_norm, k_norm] = plan.names.qk_norms;
        let qk = if plan.cross_qk_norm { Some((norm(cx, q_norm)?, norm(cx, k_norm)?)) } else { None };
        Ok(Self {
            path: scope.prefix().to_owned(),
            q: Stacked::load(cx, q.prefix(), &[(q.clone(), q_rows)], plan.d, plan.qkv_bias)?,
            k: Linear::load(cx, &k, kv_rows, cross.memory, plan.qkv_bias)?,
            v: Linear::load(cx, &v, kv_rows, cross.memory, plan.qkv_bias)?,
            qk,
            place,
        })
    }

    /// Keeps keys and values of `memory: [rows, memory]`, the rows of those sequences whose first tokens are in the batch.
    pub fn keep(&self, cx: &mut Ctx, memory: &Tensor, batch: &Packed, kv: &KvCache) -> Result<()> {
        let (group, index) = self.place;
        let (Some((k_pages, v_pages)), Some(placed)) = (kv.layer(group, index), batch.kv.get(group)) else {
            return Err(Error::Request(format!("KV cache: expected pages for {}, found none", self.path)));
        };
        let k = self.k.forward(cx, memory)?;
        if let Some((_, norm)) = &self.qk {
            let heads = k.reshape(&[k.size(0) * k_pages.size(2), k_pages.size(3)])?;
            norm.write_to(cx, &heads, &heads)?;
        }
        self.scatter(cx, &k, &placed.slots, k_pages)?;
        let v = self.v.forward(cx, memory)?;
        self.scatter(cx, &v, &placed.slots, v_pages)
    }

    fn scatter(&self, cx: &mut Ctx, x: &Tensor, slots: &Tensor, pages: &View) -> Result<()> {
        let out = pages.reshape(&[pages.size(0) * pages.size(1), x.size(1)])?;
        cx.exec(&self.path, &ScatterRows { src: cx.view(x)?, rows: cx.view(slots)?, out })
    }

    /// What queries `q: [tokens, heads_q head_dim]` find in the memory of their sequences; zeros where there is none.
    pub fn attend(
        &self,
        cx: &mut Ctx,
        plan: &TextPlan,
        q: &Tensor,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        let (tokens, width) = (q.size(0), q.size(1));
        if let Some((norm, _)) = &self.qk {
            let heads = q.reshape(&[tokens * plan.heads_q, plan.head_dim])?;
            norm.write_to(cx, &heads, &heads)?;
        }
        let q = q.reshape(&[tokens, plan.heads_q, plan.head_dim])?;
        paged(cx, &self.path, &q, self.place, batch, kv, (plan.scale, 0.0))?.reshape(&[tokens, width])
    }
}

/// Rows of several tensors `[rows, d]` as one; `None` if there are none.
pub(super) fn together(cx: &mut Ctx, path: &str, parts: &[Tensor]) -> Result<Option<Tensor>> {
    let Some(first) = parts.first() else { return Ok(None) };
    if parts.len() == 1 {
        return Ok(Some(first.clone()));
    }
    let all = cx.alloc(&[parts.iter().map(|part| part.size(0)).sum(), first.size(1)], cx.dtype())?;
    let mut row = 0;
    for part in parts {
        copy_rows(cx, path, part, &all.narrow(0, row, part.size(0))?)?;
        row += part.size(0);
    }
    Ok(Some(all))
}
