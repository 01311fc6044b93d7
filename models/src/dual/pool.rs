//! From a tower's rows to one unit vector of a picture.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};
use ocelli_kernels::ops::{Activation, Attention, AttentionKv, Seen};
use ocelli_kernels::{DType, Weights};

use crate::layers::{Embedding, Linear, Norm, Unit, gather_rows};
use crate::vision::{Connect, VitPlan};

/// CLIP's: the row before the patches, normalized and projected.
pub struct ClassRow {
    path: String,
    norm: Norm,
    proj: Linear,
    unit: Unit,
}

impl ClassRow {
    /// Loads the norm at `norm` and the projection to `d_out` numbers at `proj`.
    pub fn load(
        cx: &mut Ctx,
        norm: &Scope<'_>,
        proj: &Scope<'_>,
        plan: &VitPlan,
        d_out: usize,
    ) -> Result<Self> {
        let proj = proj.role(Role::Connector);
        Ok(Self {
            path: proj.prefix().to_owned(),
            norm: Norm::load(cx, &norm.role(Role::Tower), plan.d, plan.norm_eps, plan.norm)?,
            unit: Unit::new(cx, proj.prefix(), d_out)?,
            proj: Linear::load(cx, &proj, d_out, plan.d, false)?,
        })
    }
}

impl Connect for ClassRow {
    fn rows(&self, _: (usize, usize)) -> Result<usize> {
        Ok(1)
    }

    fn dtype(&self, _: &Ctx) -> DType {
        DType::F32
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, _: (usize, usize), out: &Tensor) -> Result<()> {
        let per_tile = x.size(0) / out.size(0).max(1);
        let first: Vec<i32> = (0..out.size(0)).map(|tile| (tile * per_tile) as i32).collect();
        let rows = gather_rows(cx, &self.path, x, &first)?;
        self.norm.write_to(cx, &rows, &rows)?;
        let vectors = cx.alloc(out.shape(), DType::F32)?;
        self.proj.write_to(cx, &rows, &vectors)?;
        self.unit.write_to(cx, &vectors, out)?;
        cx.stage(Stage::of("image_embeds"), out)
    }
}

/// SigLIP's: a learned query attends to all patches of a picture, and an MLP follows.
pub struct AttentionPool {
    path: String,
    d: usize,
    heads: usize,
    act: Activation,
    /// The query before its projection, a table of one row.
    probe: Embedding,
    q: Linear,
    /// Keys and values, side by side.
    kv: Linear,
    out: Linear,
    norm: Norm,
    up: Linear,
    down: Linear,
    unit: Unit,
}

impl AttentionPool {
    /// Loads the head at `scope` of the tower that `plan` describes.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &VitPlan) -> Result<Self> {
        let scope = scope.role(Role::Tower);
        let (d, mlp) = (plan.d, plan.mlp);
        let probe = scope.take("probe", &[1, 1, d])?.reshape(&[1, d])?;
        let probe = Weights::dense(cx.stream().place_view(&probe)?, None)?;
        let attention = scope.at("attention");
        let weight = attention.take("in_proj_weight", &[3 * d, d])?;
        let bias = attention.take("in_proj_bias", &[3 * d])?;
        let path = attention.prefix().to_owned();
        let part = |cx: &mut Ctx, first: usize, rows: usize| -> Result<Linear> {
            let w = Weights::dense(weight.narrow(0, first, rows)?, Some(bias.narrow(0, first, rows)?))?;
            Ok(Linear::tied(path.clone(), cx.stream().place(&w)?))
        };
        Ok(Self {
            d,
            heads: plan.heads,
            act: plan.act,
            probe: Embedding::of(scope.path("probe"), probe),
            q: part(cx, 0, d)?,
            kv: part(cx, d, 2 * d)?,
            out: Linear::load(cx, &attention.at("out_proj"), d, d, true)?,
            norm: Norm::load(cx, &scope.at("layernorm"), d, plan.norm_eps, plan.norm)?,
            up: Linear::load(cx, &scope.at("mlp.fc1"), mlp, d, true)?,
            down: Linear::load(cx, &scope.at("mlp.fc2"), d, mlp, true)?,
            unit: Unit::new(cx, scope.prefix(), d)?,
            path,
        })
    }
}

impl Connect for AttentionPool {
    fn rows(&self, _: (usize, usize)) -> Result<usize> {
        Ok(1)
    }

    fn dtype(&self, _: &Ctx) -> DType {
        DType::F32
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, _: (usize, usize), out: &Tensor) -> Result<()> {
        let (tiles, rows, d) = (out.size(0), x.size(0), self.d);
        let (per_tile, head_dim) = (rows / tiles.max(1), d / self.heads);
        let first = cx.upload(&[tiles], &vec![0i32; tiles])?;
        let probes = self.probe.forward(cx, &first)?;
        let q = self.q.forward(cx, &probes)?.reshape(&[tiles, self.heads, head_dim])?;
        let kv = self.kv.forward(cx, x)?;
        let part = |first: usize| kv.narrow(1, first, d)?.reshape(&[rows, self.heads, head_dim]);
        let starts = |step: usize| (0..=tiles).map(|tile| (tile * step) as i32).collect::<Vec<_>>();
        let q_starts = cx.upload(&[tiles + 1], &starts(1))?;
        let kv_starts = cx.upload(&[tiles + 1], &starts(per_tile))?;
        let mixed = cx.alloc(&[tiles, self.heads, head_dim], cx.dtype())?;
        let op = Attention {
            q: cx.view(&q)?,
            kv: AttentionKv::Packed {
                k: cx.view(&part(0)?)?,
                v: cx.view(&part(d)?)?,
                kv_starts: cx.view(&kv_starts)?,
            },
            q_starts: cx.view(&q_starts)?,
            seen: Seen::All,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&mixed)?,
            max_q: 1,
            max_kv: per_tile,
            pairs: rows as u64,
        };
        cx.exec(&self.path, &op)?;
        let mixed = self.out.forward(cx, &mixed.reshape(&[tiles, d])?)?;
        let normed = self.norm.forward(cx, &mixed)?;
        let up = self.up.forward_act(cx, &normed, self.act)?;
        self.down.add_to(cx, &up, &mixed)?;
        self.unit.write_to(cx, &mixed, out)?;
        cx.stage(Stage::of("image_embeds"), out)
    }
}
