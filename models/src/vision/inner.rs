//! A merger inside of a tower: windows of patches attend to themselves and become one row, which the layers after it go on with.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{Activation, Attention, AttentionKv, Pool, PoolKind, PoolOver, Seen};

use super::plan::VitPlan;
use super::vit::Segments;
use crate::layers::{Linear, Norm, Stacked};

/// Patches of a window.
const WINDOW: usize = 4;

/// Attention and MLP on windows of 2 x 2 patches, after `MiniCPMV4_6ViTWindowAttentionMerger` of transformers.
pub struct WindowMerger {
    path: String,
    heads: usize,
    norm1: Norm,
    qkv: Stacked,
    out: Linear,
    norm2: Norm,
    first: Linear,
    second: Linear,
}

impl WindowMerger {
    /// Loads the merger at `scope`, of a tower of that plan.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &VitPlan) -> Result<Self> {
        let (d, attn) = (plan.d, scope.at("self_attn"));
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| (attn.at(name), d));
        let norm = |cx: &mut Ctx, name: &str, d: usize| Norm::layer(cx, &scope.at(name), d, plan.norm_eps);
        Ok(Self {
            path: scope.prefix().to_owned(),
            heads: plan.heads,
            norm1: norm(cx, "layer_norm1", d)?,
            qkv: Stacked::load(cx, attn.prefix(), &qkv, d, true)?,
            out: Linear::load(cx, &attn.at("out_proj"), d, d, true)?,
            norm2: norm(cx, "pre_norm", WINDOW * d)?,
            first: Linear::load(cx, &scope.at("linear_1"), WINDOW * plan.mlp, WINDOW * d, true)?,
            second: Linear::load(cx, &scope.at("linear_2"), d, WINDOW * plan.mlp, true)?,
        })
    }

    /// `h: [rows, d]`, the patches of a window side by side  ->  `[rows / 4, d]`; changes `h`.
    pub fn forward(&self, cx: &mut Ctx, h: &Tensor) -> Result<Tensor> {
        let (rows, d, heads) = (h.size(0), h.size(1), self.heads);
        let merged = cx.alloc(&[rows / WINDOW, d], cx.dtype())?;
        cx.scope(|cx| {
            let qkv = self.qkv.forward(cx, &self.norm1, h)?;
            let part = |i: usize| qkv.narrow(1, i * d, d)?.reshape(&[rows, heads, d / heads]);
            let (q, k, v) = (part(0)?, part(1)?, part(2)?);
            let mixed = cx.alloc(&[rows, heads, d / heads], cx.dtype())?;
            let starts: Vec<usize> = (0..=rows).step_by(WINDOW).collect();
            let windows = Segments::of(cx, &starts)?;
            let starts = cx.view(&windows.starts)?;
            let op = Attention {
                q: cx.view(&q)?,
                kv: AttentionKv::Packed { k: cx.view(&k)?, v: cx.view(&v)?, kv_starts: starts.clone() },
                q_starts: starts,
                seen: Seen::All,
                scale: 1.0 / ((d / heads) as f32).sqrt(),
                softcap: 0.0,
                out: cx.view(&mixed)?,
                max_q: windows.max,
                max_kv: windows.max,
                pairs: windows.pairs,
            };
            cx.exec(&self.path, &op)?;
            self.out.add_to(cx, &mixed.reshape(&[rows, d])?, h)?;
            // The mean of a window's patches, and what the MLP makes of them together.
            let over = PoolOver::Grid { grid_h: 1, grid_w: WINDOW, block_h: 1, block_w: WINDOW };
            let op = Pool { x: cx.view(h)?, over, kind: PoolKind::Mean, out: cx.view(&merged)? };
            cx.exec(&self.path, &op)?;
            let flat = self.norm2.forward(cx, &h.reshape(&[rows / WINDOW, WINDOW * d])?)?;
            let up = self.first.forward_act(cx, &flat, Activation::GeluTanh)?;
            self.second.add_to(cx, &up, &merged)
        })?;
        Ok(merged)
    }
}
