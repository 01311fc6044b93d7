//! The gradient of each op: which values it needs, and the ops that compute it.

use std::any::Any;

use ocelli_kernels::ops::{
    ActGrad, Activation, Attention, AttentionGrad, AttentionKv, GatherRows, GatherRowsGrad, KvRead, Matmul,
    MatmulGrad, MergePatches, MergePatchesGrad, Norm, NormGrad, PartGrad, PatchEmbed, PatchEmbedGrad,
    Pointwise, PointwiseGrad, Pool, PoolGrad, PoolKind, PoolOver, QkNorm, QkNormGrad, Rope, RopeGrad,
    ScatterRows, ScatterRowsGrad, Seen,
};
use ocelli_kernels::{DType, Op, View, Weights};
use smallvec::SmallVec;

use super::{Backward, Needs, Note, Taped};
use crate::ctx::Ctx;
use crate::error::{Error, Result};

/// Notes an op.
pub(super) fn note<O: Op>(cx: &mut Ctx, path: &str, op: &O) -> Result<Note> {
    let any: &dyn Any = op;
    let taped: Box<dyn Taped> = if let Some(op) = any.downcast_ref::<Matmul>() {
        Box::new(TapedMatmul::new(cx, op)?)
    } else {
        PLAIN.iter().find_map(|noted| noted(any)).ok_or_else(|| {
            let known = "its gradient is not known; train other parts, or parts behind it";
            Error::Train(format!("{path}: {}: {known}", O::NAME))
        })?
    };
    Ok(Note::new(path, taped, None))
}

/// Notes an op, if it is one that it knows.
type Noting = fn(&dyn Any) -> Option<Box<dyn Taped>>;

/// Ops that run as they are, with their gradients.
const PLAIN: [Noting; 9] = [
    noted::<Attention>,
    noted::<GatherRows>,
    noted::<MergePatches>,
    noted::<Norm>,
    noted::<PatchEmbed>,
    noted::<Pointwise>,
    noted::<Pool>,
    noted::<Rope>,
    noted::<ScatterRows>,
];

fn noted<O: Taped + Clone + 'static>(op: &dyn Any) -> Option<Box<dyn Taped>> {
    op.downcast_ref::<O>().map(|op| Box::new(op.clone()) as Box<dyn Taped>)
}

/// What ends the gradients of memory that is written anew.
pub(super) struct Nothing;

impl Taped for Nothing {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }
}

/// A product, with what goes into its activation.
struct TapedMatmul {
    op: Matmul,
    /// The biased products `[m, n]`, where an activation follows.
    z: Option<View>,
}

impl TapedMatmul {
    fn new(cx: &mut Ctx, op: &Matmul) -> Result<Self> {
        let z = match op.act != Activation::None || op.gated {
            true => Some(cx.alloc(&[op.x.size(0), op.w.n()], DType::F32)?),
            false => None,
        };
        let z = z.map(|z| cx.view(&z)).transpose()?;
        Ok(Self { op: op.clone(), z })
    }
}

impl Taped for TapedMatmul {
    fn needs(&self) -> Needs {
        Needs { before: vec![self.op.x.clone()], after: Vec::new() }
    }

    fn run(&self, cx: &mut Ctx, path: &str) -> Result<bool> {
        let Some(z) = &self.z else { return Ok(false) };
        let product =
            Matmul { out: z.clone(), residual: None, act: Activation::None, gated: false, ..self.op.clone() };
        cx.exec_now(path, &product)?;
        let (arg, by) = if self.op.gated {
            let half = z.size(1) / 2;
            (z.narrow(1, 0, half)?, Some(z.narrow(1, half, half)?))
        } else {
            (z.clone(), None)
        };
        let op = Pointwise {
            act: self.op.act,
            by,
            add: self.op.residual.clone(),
            ..Pointwise::new(arg, self.op.out.clone())
        };
        cx.exec_now(path, &op)?;
        Ok(true)
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let Self { op, z } = self;
        let d_out = cx.grad_out(&op.out)?;
        if let Some(residual) = op.residual.as_ref().filter(|residual| !residual.same_elements(&op.out))
            && let Some(d_residual) = cx.grad(residual)?
        {
            cx.add(d_out.clone(), d_residual)?;
        }
        let dz = match z {
            None => d_out,
            Some(z) => {
                let dz = z.clone();
                let op = ActGrad { z: z.clone(), act: op.act, gated: op.gated, d_out, dz: dz.clone() };
                cx.exec(&op)?;
                dz
            }
        };
        let parts = part_grads(cx, &op.w)?;
        let dx = cx.grad(&op.x)?;
        if dx.is_none() && parts.is_empty() {
            return Ok(());
        }
        cx.exec(&MatmulGrad { dz, x: cx.value(&op.x)?, w: op.w.clone(), dx, parts })
    }
}

/// Gradients of the parts of a matrix; none where none is trained.
fn part_grads(cx: &mut Backward<'_>, w: &Weights) -> Result<SmallVec<[PartGrad; 3]>> {
    let mut parts = SmallVec::new();
    for part in w.parts() {
        let weight = match &part.planes[..] {
            [plane] if plane.dtype() == DType::F32 => cx.grad(plane)?,
            _ => None,
        };
        parts.push(PartGrad { weight, bias: cx.grad_of(part.bias.as_ref())? });
    }
    let any = parts.iter().any(|part: &PartGrad| part.weight.is_some() || part.bias.is_some());
    Ok(if any { parts } else { SmallVec::new() })
}

impl Taped for Norm {
    fn needs(&self) -> Needs {
        match (&self.add, &self.sum) {
            (Some(_), Some(sum)) => Needs { before: Vec::new(), after: vec![sum.clone()] },
            (add, _) => Needs {
                before: [Some(&self.x), add.as_ref()].into_iter().flatten().cloned().collect(),
                after: Vec::new(),
            },
        }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (dx, d_add) = (cx.grad(&self.x)?, cx.grad_of(self.add.as_ref())?);
        // Where two were added, both have the gradient of their sum.
        let (x, d_sum) = match (&self.add, &self.sum) {
            (None, _) => (cx.value(&self.x)?, dx.clone()),
            (Some(_), Some(sum)) => (cx.value(sum)?, Some(cx.grad_out(sum)?)),
            (Some(add), None) => {
                let (x, add, s) = (cx.value(&self.x)?, cx.value(add)?, cx.temp(self.x.shape())?);
                cx.exec(&Pointwise { add: Some(add), ..Pointwise::new(x, s.clone()) })?;
                let d_sum = cx.temp(self.x.shape())?;
                cx.clear(&d_sum)?;
                (s, Some(d_sum))
            }
        };
        let op = NormGrad {
            x,
            weight: cx.wide_of(self.weight.clone())?,
            kind: self.kind,
            weight_offset: self.weight_offset,
            eps: self.eps,
            d_out: cx.grad_out(&self.out)?,
            dx: d_sum.clone(),
            d_weight: cx.grad_of(self.weight.as_ref())?,
            d_bias: cx.grad_of(self.bias.as_ref())?,
        };
        cx.exec(&op)?;
        if let (Some(d_sum), Some(_)) = (d_sum, &self.add) {
            for to in [dx, d_add].into_iter().flatten().filter(|to| !to.same_elements(&d_sum)) {
                cx.add(d_sum.clone(), to)?;
            }
        }
        Ok(())
    }
}

impl Taped for GatherRows {
    fn needs(&self) -> Needs {
        Needs { before: vec![self.ids.clone()], after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (ids, d_out) = (cx.value(&self.ids)?, cx.grad_out(&self.out)?);
        let [part] = self.table.parts() else {
            return Err(Error::Train("rows of a table in parts: their gradient is not known".into()));
        };
        match cx.grad(&part.planes[0])? {
            Some(d_table) => cx.exec(&GatherRowsGrad { ids, scale: self.scale, d_out, d_table }),
            None => Ok(()),
        }
    }
}

impl Taped for ScatterRows {
    fn needs(&self) -> Needs {
        Needs { before: vec![self.rows.clone()], after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (rows, d_out) = (cx.value(&self.rows)?, cx.grad_out(&self.out)?);
        let d_src = cx.grad(&self.src)?;
        cx.exec(&ScatterRowsGrad { rows, d_out, d_src })
    }
}

impl Taped for MergePatches {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let Some(dx) = cx.grad(&self.x)? else { return Ok(()) };
        let Self { grid_h, grid_w, factor, order, .. } = *self;
        let d_out = cx.grad_out(&self.out)?;
        cx.exec(&MergePatchesGrad { grid_h, grid_w, factor, order, d_out, dx })
    }
}

impl Taped for PatchEmbed {
    fn needs(&self) -> Needs {
        let before = std::iter::once(&self.pixels).chain(&self.pos_ids).cloned().collect();
        Needs { before, after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let parts = part_grads(cx, &self.w)?;
        let (d_w, d_bias) = match &parts[..] {
            [] => (None, None),
            [part] => (part.weight.clone(), part.bias.clone()),
            _ => return Err(Error::Train("filters in parts: their gradient is not known".into())),
        };
        let op = PatchEmbedGrad {
            pixels: cx.value(&self.pixels)?,
            pos_ids: cx.value_of(self.pos_ids.as_ref())?,
            mean: self.mean,
            std: self.std,
            patch: self.patch,
            d_out: cx.grad_out(&self.out)?,
            d_w,
            d_bias,
            d_pos: cx.grad_of(self.pos.as_ref())?,
        };
        cx.exec(&op)
    }
}

impl Taped for Pointwise {
    fn needs(&self) -> Needs {
        let before = std::iter::once(&self.x).chain(&self.by).chain(&self.row).chain(&self.col);
        Needs { before: before.cloned().collect(), after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let [col, row, by] = [&self.col, &self.row, &self.by].map(|view| cx.value_of(view.as_ref()));
        let all = PointwiseGrad {
            x: cx.value(&self.x)?,
            bounds: self.bounds,
            softcap: self.softcap,
            act: self.act,
            scale: self.scale,
            col: cx.wide_of(col?)?,
            row: cx.wide_of(row?)?,
            by: cx.wide_of(by?)?,
            d_out: cx.grad_out(&self.out)?,
            dx: cx.grad(&self.x)?,
            d_col: cx.grad_of(self.col.as_ref())?,
            d_by: cx.grad_of(self.by.as_ref())?,
            // What is added in place has its gradient there already.
            d_add: cx.grad_of(self.add.as_ref().filter(|add| !add.same_elements(&self.out)))?,
        };
        let shared = |a: &Option<View>, b: &Option<View>| {
            a.as_ref().zip(b.as_ref()).is_some_and(|(a, b)| a.overlaps(b))
        };
        let PointwiseGrad { dx, d_by, d_add, .. } = &all;
        if !shared(dx, d_by) && !shared(dx, d_add) && !shared(d_by, d_add) {
            return cx.exec(&all);
        }
        // An operand that is there twice, as of a square, has the sum of both: one after the other.
        let none = PointwiseGrad { dx: None, d_col: None, d_by: None, d_add: None, ..all.clone() };
        for op in [
            PointwiseGrad { d_col: all.d_col.clone(), d_by: d_by.clone(), ..none.clone() },
            PointwiseGrad { d_add: d_add.clone(), ..none.clone() },
            PointwiseGrad { dx: dx.clone(), ..none },
        ] {
            cx.exec(&op)?;
        }
        Ok(())
    }
}

impl Taped for Pool {
    fn needs(&self) -> Needs {
        let mut before = Vec::new();
        if let PoolOver::Segments(segments) = &self.over {
            before.push(segments.clone());
        }
        if self.kind == PoolKind::Max {
            before.push(self.x.clone());
        }
        Needs { before, after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let Some(dx) = cx.grad(&self.x)? else { return Ok(()) };
        let x = if self.kind == PoolKind::Max { Some(cx.value(&self.x)?) } else { None };
        let over = match &self.over {
            PoolOver::Segments(segments) => PoolOver::Segments(cx.value(segments)?),
            grid @ PoolOver::Grid { .. } => grid.clone(),
        };
        let d_out = cx.grad_out(&self.out)?;
        cx.exec(&PoolGrad { x, over, kind: self.kind, d_out, dx })
    }
}

impl Taped for Attention {
    fn needs(&self) -> Needs {
        let mut before = vec![self.q.clone(), self.q_starts.clone()];
        match &self.kv {
            AttentionKv::Packed { k, v, kv_starts } => before.extend([k, v, kv_starts].map(Clone::clone)),
            AttentionKv::Paged { k, v, block_table, kv_lens } => {
                before.extend([k, v, block_table, kv_lens].map(Clone::clone));
            }
        }
        if let Seen::Ranges { from, to } = &self.seen {
            before.extend(from.iter().chain([to]).cloned());
        }
        Needs { before, after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (kv, k, v) = match &self.kv {
            AttentionKv::Packed { k, v, kv_starts } => {
                let kv_starts = cx.value(kv_starts)?;
                (AttentionKv::Packed { k: cx.value(k)?, v: cx.value(v)?, kv_starts }, k, v)
            }
            AttentionKv::Paged { k, v, block_table, kv_lens } => {
                let (block_table, kv_lens) = (cx.value(block_table)?, cx.value(kv_lens)?);
                (AttentionKv::Paged { k: cx.value(k)?, v: cx.value(v)?, block_table, kv_lens }, k, v)
            }
        };
        let seen = match &self.seen {
            Seen::Ranges { from, to } => {
                Seen::Ranges { from: cx.value_of(from.as_ref())?, to: cx.value(to)? }
            }
            other => other.clone(),
        };
        let op = AttentionGrad {
            q: cx.value(&self.q)?,
            kv,
            q_starts: cx.value(&self.q_starts)?,
            seen,
            scale: self.scale,
            softcap: self.softcap,
            max_q: self.max_q,
            max_kv: self.max_kv,
            pairs: self.pairs,
            d_out: cx.grad_out(&self.out)?,
            dq: cx.grad(&self.q)?,
            dk: cx.grad(k)?,
            dv: cx.grad(v)?,
        };
        cx.exec(&op)
    }
}

impl Taped for Rope {
    fn needs(&self) -> Needs {
        let mut before = vec![self.positions.clone()];
        if self.norm.is_some() {
            before.extend([self.q.clone(), self.k.clone()]);
        }
        before.extend(self.kv.iter().map(|kv| kv.slots.clone()));
        Needs { before, after: Vec::new() }
    }

    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let norm = match &self.norm {
            None => None,
            Some(norm) => Some(QkNormGrad {
                q: cx.value(&self.q)?,
                k: cx.value(&self.k)?,
                norm: QkNorm { q: cx.wide(norm.q.clone())?, k: cx.wide(norm.k.clone())?, ..norm.clone() },
                d_q: cx.grad(&norm.q)?,
                d_k: cx.grad(&norm.k)?,
            }),
        };
        let kv = match &self.kv {
            None => None,
            Some(kv) => Some(KvRead {
                dk_pages: cx.grad_out(&kv.k_pages)?,
                dv_pages: cx.grad_out(&kv.v_pages)?,
                slots: cx.value(&kv.slots)?,
                dv: cx.grad(&kv.v)?,
            }),
        };
        let op = RopeGrad {
            dq: cx.grad_out(&self.q)?,
            dk: cx.grad_out(&self.k)?,
            positions: cx.value(&self.positions)?,
            inv_freq: self.inv_freq.clone(),
            pair_axis: self.pair_axis.clone(),
            style: self.style,
            attention_scaling: self.attention_scaling,
            norm,
            kv,
        };
        cx.exec(&op)
    }
}
