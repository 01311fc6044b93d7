//! The decoder that every plan of [`TextPlan`] describes: token embeddings, layers of attention and gated MLP, a head.

use ocelli_engine::batch::{Packed, Sees};
use ocelli_engine::kv::KvCache;
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, ReplayKey, Result, Stage, Tensor};
use ocelli_kernels::ops::{
    self, Attention, AttentionKv, GatherRows, KvWrite, NormKind, Pointwise, QkNorm, Rope, ScatterRows, Seen,
};
use ocelli_kernels::{DType, Weights};

use super::gated_delta::DeltaRule;
use super::short_conv::GatedConv;
use super::{LayerPlan, Mix, Norms, TextPlan};
use crate::layers::{Embedding, Linear, Mlp, Norm, RopeTable, Stacked};

/// What mixes the tokens of a layer, between the norm before it and the output projection.
enum Mixer {
    Attention(Box<Heads>),
    ShortConv(Box<GatedConv>),
    /// With the place of its state.
    Delta(Box<DeltaRule>, (usize, usize)),
}

impl Mixer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, mix: Mix) -> Result<Self> {
        Ok(match (mix, plan.conv, plan.delta) {
            (Mix::ShortConv, Some(conv), _) => {
                Self::ShortConv(Box::new(GatedConv::load(cx, &scope.at("conv"), plan, conv)?))
            }
            (Mix::Delta { state }, _, Some(delta)) => {
                let rule = DeltaRule::load(cx, &scope.at("linear_attn"), plan, delta)?;
                Self::Delta(Box::new(rule), state)
            }
            _ => Self::Attention(Box::new(Heads::load(cx, &scope.at("self_attn"), plan)?)),
        })
    }

    /// Projections of the input.
    fn input(&self) -> &Stacked {
        match self {
            Self::Attention(heads) => &heads.qkv,
            Self::ShortConv(conv) => &conv.input,
            Self::Delta(rule, _) => &rule.input,
        }
    }
}

/// Projections to queries, keys and values, and norms of the former two.
struct Heads {
    qkv: Stacked,
    qk: Option<(Norm, Norm)>,
}

struct Layer {
    plan: LayerPlan,
    path: String,
    norm1: Norm,
    mixer: Mixer,
    out: Linear,
    after_attention: Option<Norm>,
    /// None where the norm before attention serves the MLP too.
    norm2: Option<Norm>,
    mlp: Mlp,
    after_mlp: Option<Norm>,
}

/// The decoder with its head.
pub struct Decoder {
    plan: TextPlan,
    path: String,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    ropes: Vec<RopeTable>,
    /// Tells this decoder's launches from those of others.
    id: usize,
}

impl Decoder {
    /// Loads the decoder below `scope`, and its head at `head`; where the file has none, the embedding, if the plan lets it.
    /// `config` names the configuration in errors.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        head: &Scope<'_>,
        plan: TextPlan,
        config: &str,
    ) -> Result<Self> {
        let outer = scope.role(Role::Embedding);
        let scope = scope.role(Role::Decoder);
        let (d, vocab) = (plan.d, plan.vocab);
        let embedding = Embedding::load(cx, &outer.at("embed_tokens"), vocab, d, plan.embed_scale)?;
        let norm = |cx: &mut Ctx, scope: Scope<'_>| {
            Norm::unshifted(cx, &scope, d, plan.norm, (plan.norm_eps, plan.norm_offset))
        };
        let mut layers = Vec::new();
        for (i, &of_layer) in plan.layers.iter().enumerate() {
            layers.push(Layer::load(cx, &scope.at(format_args!("layers.{i}")), &plan, of_layer)?);
        }
        let head = if head.exists() || !plan.tied {
            Linear::load(cx, &head.role(Role::Head), vocab, d, false)?
        } else {
            Linear::tied(head.prefix(), embedding.weights().clone())
        };
        let mut ropes = Vec::with_capacity(plan.ropes.len());
        for rope in &plan.ropes {
            ropes.push(rope.table(cx, config, plan.head_dim)?);
        }
        Ok(Self {
            path: scope.prefix().to_owned(),
            embedding,
            layers,
            norm: norm(cx, scope.at(plan.names.norm))?,
            head,
            ropes,
            plan,
            id: ReplayKey::unique(),
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &TextPlan {
        &self.plan
    }

    /// `batch: [tokens]  ->  f32 [rows_wanted, vocab]`; features replace embeddings, keys and values go to `kv`.
    pub fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        let logits = cx.alloc(&[batch.rows_wanted, self.plan.vocab], DType::F32)?;
        let work = |cx: &mut Ctx| self.pass(cx, batch, kv, &logits);
        // A step of one token a sequence is the same launches each time.
        if batch.repeats() {
            let mut key = batch.replay_key();
            key.number(self.id).view(logits.view());
            for view in kv.views() {
                key.view(view);
            }
            cx.replay(key, work)?;
        } else {
            cx.scope(work)?;
        }
        cx.stage(Stage::LOGITS, &logits)?;
        Ok(logits)
    }

    fn pass(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache, logits: &Tensor) -> Result<()> {
        let h = self.embedding.forward(cx, &batch.ids)?;
        for (features, rows) in &batch.features {
            let op = ScatterRows { src: cx.view(features)?, rows: cx.view(rows)?, out: cx.view(&h)? };
            cx.exec(&self.path, &op)?;
        }
        cx.stage(Stage::EMBEDDINGS, &h)?;
        // Where norms follow a sum, the sum of one layer is taken on the way into the norm of the next.
        let normed = match self.plan.norms {
            Norms::Before | Norms::Shared => None,
            Norms::Around => Some(cx.alloc(h.shape(), cx.dtype())?),
        };
        if let (Some(normed), Some(first)) = (&normed, self.layers.first()) {
            first.norm1.write_to(cx, &h, normed)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(i + 1).map_or(&self.norm, |next| &next.norm1);
            cx.scope(|cx| self.layer(cx, layer, &h, normed.as_ref(), next, batch, kv))?;
            cx.stage(Stage::text_layer(i), &h)?;
            let added = self.add_deep(cx, i, &h, batch)?;
            if let Some(normed) = normed.as_ref().filter(|_| added) {
                next.write_to(cx, &h, normed)?;
            }
        }
        if batch.rows_wanted == 0 {
            return Ok(());
        }
        let rows = normed.as_ref().unwrap_or(&h);
        let rows = match &batch.wanted {
            None => rows.clone(),
            Some(wanted) => gather(cx, &self.path, rows, wanted)?,
        };
        match normed {
            Some(_) => self.head.write_to(cx, &rows, logits),
            None => self.head.write_normalized(cx, &self.norm, &rows, logits),
        }?;
        self.finish(cx, logits)
    }

    /// Scales and bounds logits, in place.
    fn finish(&self, cx: &mut Ctx, logits: &Tensor) -> Result<()> {
        let TextPlan { logit_scale, logit_softcap, .. } = self.plan;
        if logit_scale == 1.0 && logit_softcap == 0.0 {
            return Ok(());
        }
        let view = cx.view(logits)?;
        let op =
            Pointwise { softcap: logit_softcap, scale: logit_scale, ..Pointwise::new(view.clone(), view) };
        cx.exec(&self.path, &op)
    }

    /// Adds the rows that features have for a layer to its result; whether there were any.
    fn add_deep(&self, cx: &mut Ctx, layer: usize, h: &Tensor, batch: &Packed) -> Result<bool> {
        let Some(deep) = batch.deep.get(layer).filter(|deep| !deep.is_empty()) else { return Ok(false) };
        for (features, rows) in deep {
            cx.scope(|cx| {
                let sum = gather(cx, &self.path, h, rows)?;
                let unused = cx.alloc(sum.shape(), cx.dtype())?;
                let add = ops::Norm {
                    x: cx.view(&sum)?,
                    add: Some(cx.view(features)?),
                    sum: Some(cx.view(&sum)?),
                    weight: None,
                    bias: None,
                    kind: NormKind::Rms,
                    weight_offset: 1.0,
                    eps: 1.0,
                    out: cx.view(&unused)?,
                };
                cx.exec(&self.path, &add)?;
                let op = ScatterRows { src: cx.view(&sum)?, rows: cx.view(rows)?, out: cx.view(h)? };
                cx.exec(&self.path, &op)
            })?;
        }
        Ok(true)
    }

    /// `normed` is `norm1(h)` on the way in and `next(h)` on the way out, where norms are around.
    fn layer(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        h: &Tensor,
        normed: Option<&Tensor>,
        next: &Norm,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<()> {
        let Some(norm2) = &layer.norm2 else { return self.shared_layer(cx, layer, h, batch, kv) };
        let input = match normed {
            Some(x) => layer.mixer.input().forward_plain(cx, x)?,
            None => layer.mixer.input().forward(cx, &layer.norm1, h)?,
        };
        let mixed = self.mix(cx, layer, &input, batch, kv)?;
        match (normed, &layer.after_attention, &layer.after_mlp) {
            (Some(normed), Some(after_attention), Some(after_mlp)) => {
                let out = layer.out.forward(cx, &mixed)?;
                after_attention.write_to(cx, &out, &out)?;
                norm2.add_to(cx, h, &out, normed)?;
                let out = layer.mlp.forward(cx, normed, batch.repeats())?;
                after_mlp.write_to(cx, &out, &out)?;
                next.add_to(cx, h, &out, normed)
            }
            _ => {
                layer.out.add_to(cx, &mixed, h)?;
                layer.mlp.add_normalized(cx, norm2, h, batch.repeats())
            }
        }
    }

    /// Attention and MLP on the same normalized rows.
    fn shared_layer(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        h: &Tensor,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<()> {
        let x = layer.norm1.forward(cx, h)?;
        let input = layer.mixer.input().forward_plain(cx, &x)?;
        let mixed = self.mix(cx, layer, &input, batch, kv)?;
        layer.out.add_to(cx, &mixed, h)?;
        layer.mlp.add_to(cx, &x, h, batch.repeats())
    }

    /// What the tokens of a layer make of each other, from the projections of its input.
    fn mix(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        input: &Tensor,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        match &layer.mixer {
            Mixer::Attention(heads) => self.attention(cx, layer, heads, input, batch, kv),
            Mixer::ShortConv(conv) => conv.forward(cx, input, layer.plan.kv, batch, kv),
            Mixer::Delta(rule, state) => rule.forward(cx, input, layer.plan, *state, batch, kv),
        }
    }

    /// `qkv: [tokens, (heads_q + 2 heads_kv) head_dim]  ->  [tokens, heads_q head_dim]`.
    fn attention(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        heads: &Heads,
        qkv: &Tensor,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        let TextPlan { heads_q, heads_kv, head_dim, .. } = self.plan;
        let tokens = batch.tokens;
        // Queries may have gates beside them, head by head.
        let wide = if self.plan.output_gate { 2 * heads_q } else { heads_q };
        let part = |first: usize, heads: usize| {
            qkv.narrow(1, first * head_dim, heads * head_dim)?.reshape(&[tokens, heads, head_dim])
        };
        let (k, v) = (part(wide, heads_kv)?, part(wide + heads_kv, heads_kv)?);
        let (q, gate) = if self.plan.output_gate {
            let both = qkv.narrow(1, 0, wide * head_dim)?.reshape(&[tokens, heads_q, 2 * head_dim])?;
            (both.narrow(2, 0, head_dim)?, Some(both.narrow(2, head_dim, head_dim)?))
        } else {
            (part(0, heads_q)?, None)
        };
        let (group, index) = layer.plan.kv;
        let (Some((k_pages, v_pages)), Some(placed)) = (kv.layer(group, index), batch.kv.get(group)) else {
            return Err(Error::Request(format!("KV cache: expected pages for {}, found none", layer.path)));
        };
        let Some(table) = self.ropes.get(layer.plan.rope) else {
            return Err(Error::Request(format!("{}: rotation {} is missing", layer.path, layer.plan.rope)));
        };
        let norm = heads.qk.as_ref().map(|(q, k)| {
            let (scale, weight_offset, eps) = q.scale();
            QkNorm { q: scale.clone(), k: k.scale().0.clone(), weight_offset, eps }
        });
        let rope = Rope {
            q: cx.view(&q)?,
            k: cx.view(&k)?,
            positions: cx.view(&batch.positions)?,
            inv_freq: cx.view(&table.inv_freq)?,
            pair_axis: table.pair_axis.as_ref().map(|axes| cx.view(axes)).transpose()?,
            style: self.plan.rope_style,
            attention_scaling: table.attention_scaling,
            norm,
            kv: Some(KvWrite {
                v: cx.view(&v)?,
                k_pages: k_pages.clone(),
                v_pages: v_pages.clone(),
                slots: cx.view(&placed.slots)?,
            }),
        };
        cx.exec(&layer.path, &rope)?;
        let out = cx.alloc(&[tokens, heads_q, head_dim], cx.dtype())?;
        for run in &batch.runs {
            let (rows, seqs) = (&run.rows, &run.seqs);
            let Some(keys) = run.keys.get(group) else { continue };
            let op = Attention {
                q: cx.view(&q.narrow(0, rows.start, rows.len())?)?,
                kv: AttentionKv::Paged {
                    k: k_pages.clone(),
                    v: v_pages.clone(),
                    block_table: cx.view(&placed.block_table.narrow(0, seqs.start, seqs.len())?)?,
                    kv_lens: cx.view(&placed.kv_lens.narrow(0, seqs.start, seqs.len())?)?,
                },
                q_starts: cx.view(&run.q_starts)?,
                seen: seen(cx, &keys.sees)?,
                scale: self.plan.scale,
                softcap: self.plan.softcap,
                out: cx.view(&out.narrow(0, rows.start, rows.len())?)?,
                max_q: run.max_q,
                max_kv: keys.most,
                pairs: keys.pairs,
            };
            cx.exec(&layer.path, &op)?;
        }
        if let Some(gate) = gate {
            let result = cx.view(&out)?;
            cx.exec(&layer.path, &ops::Gate { x: result.clone(), gate: cx.view(&gate)?, out: result })?;
        }
        out.reshape(&[tokens, heads_q * head_dim])
    }
}

fn seen(cx: &Ctx, sees: &Sees) -> Result<Seen> {
    Ok(match sees {
        Sees::All => Seen::All,
        Sees::Causal { window } => Seen::Causal { window: *window },
        Sees::Ranges { from, to } => Seen::Ranges { from: Some(cx.view(from)?), to: cx.view(to)? },
    })
}

/// Rows of `x` in the order of `ids`.
fn gather(cx: &mut Ctx, path: &str, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let out = cx.alloc(&[ids.size(0), x.size(1)], cx.dtype())?;
    let table = Weights::dense(cx.view(x)?, None)?;
    cx.exec(path, &GatherRows { table, ids: cx.view(ids)?, scale: 1.0, out: cx.view(&out)? })?;
    Ok(out)
}

impl Heads {
    fn load(cx: &mut Ctx, attn: &Scope<'_>, plan: &TextPlan) -> Result<Self> {
        let gates = if plan.output_gate { 2 } else { 1 };
        let (q_rows, kv_rows) = (gates * plan.heads_q * plan.head_dim, plan.heads_kv * plan.head_dim);
        let qkv = [(attn.at("q_proj"), q_rows), (attn.at("k_proj"), kv_rows), (attn.at("v_proj"), kv_rows)];
        let norm = |cx: &mut Ctx, name: &str| {
            Norm::unshifted(cx, &attn.at(name), plan.head_dim, plan.norm, (plan.norm_eps, plan.norm_offset))
        };
        let [q, k] = plan.names.qk_norms;
        let qk = if plan.qk_norm { Some((norm(cx, q)?, norm(cx, k)?)) } else { None };
        Ok(Self { qkv: Stacked::load(cx, attn.prefix(), &qkv, plan.d, plan.qkv_bias)?, qk })
    }
}

impl Layer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, of_layer: LayerPlan) -> Result<Self> {
        let (names, ffn) = (plan.names, scope.at(plan.names.mlp));
        let d = plan.d;
        let norm = |cx: &mut Ctx, scope: Scope<'_>| {
            Norm::unshifted(cx, &scope, d, plan.norm, (plan.norm_eps, plan.norm_offset))
        };
        let (before_mlp, after_attention, after_mlp) = match plan.norms {
            Norms::Before => (names.norm2, None, None),
            Norms::Shared => ("", None, None),
            Norms::Around => (
                names.around[1],
                Some(norm(cx, scope.at(names.around[0]))?),
                Some(norm(cx, scope.at(names.around[2]))?),
            ),
        };
        let (mixing, out, width, bias) = match (of_layer.mix, plan.conv, plan.delta) {
            (Mix::ShortConv, Some(conv), _) => (scope.at("conv"), "out_proj", d, conv.bias),
            (Mix::Delta { .. }, _, Some(delta)) => {
                (scope.at("linear_attn"), "out_proj", delta.width(), false)
            }
            _ => (scope.at("self_attn"), names.out, plan.heads_q * plan.head_dim, plan.out_bias),
        };
        Ok(Self {
            plan: of_layer,
            path: mixing.prefix().to_owned(),
            norm1: norm(cx, scope.at(names.norm1))?,
            mixer: Mixer::load(cx, scope, plan, of_layer.mix)?,
            out: Linear::load(cx, &mixing.at(out), d, width, bias)?,
            after_attention,
            norm2: if before_mlp.is_empty() { None } else { Some(norm(cx, scope.at(before_mlp))?) },
            mlp: match plan.experts.as_ref().filter(|_| of_layer.experts) {
                Some(experts) => Mlp::experts(cx, &ffn, experts)?,
                None => Mlp::gated(cx, &ffn, names.projections, (d, plan.mlp), plan.act, plan.mlp_bias)?,
            },
            after_mlp,
        })
    }
}
