//! The decoder that every plan of [`TextPlan`] describes: token embeddings, layers of attention and gated MLP, a head.

use ocelli_engine::batch::Packed;
use ocelli_engine::kv::KvCache;
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, ReplayKey, Result, Stage, Tensor};
use ocelli_kernels::ops::{self, GatherRows, KvWrite, NormKind, Pointwise, QkNorm, Rope, ScatterRows};
use ocelli_kernels::{DType, Weights};

use super::beside::Beside;
use super::cross::{Cross, together};
use super::folds;
use super::gated_delta::DeltaRule;
use super::head::Head;
use super::inputs::{Inputs, Taking, factor};
use super::paged::paged;
use super::short_conv::GatedConv;
use super::tempered::Tempered;
use super::{Keys, LayerPlan, Mix, Norms, TextPlan};
use crate::layers::{Embedding, Linear, Mlp, Norm, RopeTable, Stacked, add_rows};

/// What mixes the tokens of a layer, between the norm before it and the output projection.
enum Mixer {
    Attention(Box<Heads>),
    /// With the factors of what attention and MLP add.
    Cross(Box<Cross>, [f32; 2]),
    ShortConv(Box<GatedConv>),
    /// With the place of its state.
    Delta(Box<DeltaRule>, (usize, usize)),
}

impl Mixer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, of_layer: LayerPlan) -> Result<Self> {
        if let (Mix::Cross, Some(cross)) = (of_layer.mix, &plan.cross) {
            let mut gates = [0.0; 2];
            for (gate, name) in gates.iter_mut().zip(cross.gates) {
                scope.take(name, &[1])?;
                *gate = scope.checkpoint().floats(&scope.path(name))?.first().map_or(0.0, |gate| gate.tanh());
            }
            let attention = Cross::load(cx, &scope.at(cross.module), plan, cross, of_layer.kv)?;
            return Ok(Self::Cross(Box::new(attention), gates));
        }
        Ok(match (of_layer.mix, plan.conv, plan.delta) {
            (Mix::ShortConv, Some(conv), _) => {
                Self::ShortConv(Box::new(GatedConv::load(cx, &scope.at("conv"), plan, conv)?))
            }
            (Mix::Delta { state }, _, Some(delta)) => {
                let rule = DeltaRule::load(cx, &scope.at("linear_attn"), plan, delta)?;
                Self::Delta(Box::new(rule), state)
            }
            _ => {
                let at = scope.at(plan.names.attention);
                Self::Attention(Box::new(Heads::load(cx, &at, plan, of_layer)?))
            }
        })
    }

    /// Projections of the input.
    fn input(&self) -> &Stacked {
        match self {
            Self::Attention(heads) => &heads.qkv,
            Self::Cross(cross, _) => &cross.q,
            Self::ShortConv(conv) => &conv.input,
            Self::Delta(rule, _) => &rule.input,
        }
    }
}

/// Projections to queries, keys and values, as far as the layer has its own, and their norms.
struct Heads {
    qkv: Stacked,
    qk: Option<(Norm, Norm)>,
    v: Option<Norm>,
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
    /// Experts beside the MLP.
    beside: Option<Beside>,
    after_mlp: Option<Norm>,
    /// How the layer's own input is taken.
    taking: Option<Taking>,
    /// Factor of the result: norms have it for what is added last.
    factor: f32,
    /// Attention to memory after that to tokens, its output projection and its norm.
    cross: Option<Box<(Cross, Linear, Norm)>>,
}

/// Rows, and how they are normalized on their way into projections.
struct Rows<'a> {
    norm: Option<&'a Norm>,
    x: &'a Tensor,
}

/// What goes through a layer.
struct Io<'a> {
    /// Its input and result.
    h: &'a Tensor,
    /// Where norms are around: rows which are its first norm of `h` on the way in and the next layer's on the way out, and that.
    around: Option<(&'a Tensor, &'a Norm)>,
    /// What it takes beside.
    input: Option<&'a Tensor>,
}

/// Other ends of a decoder than its token embeddings and its head.
pub trait Ends {
    /// Rows of the batch's ids, `[tokens, d]`; `None`: those are tokens of the vocabulary.
    fn embed(&self, cx: &mut Ctx, ids: &Tensor) -> Result<Option<Tensor>>;

    /// Numbers of a row of the result.
    fn logits(&self) -> usize;

    /// `rows: [rows, d]`, normalized  ->  `out: f32 [rows, logits]`.
    fn write_to(&self, cx: &mut Ctx, rows: &Tensor, out: &Tensor) -> Result<()>;

    /// Tells launches with these ends from those with others.
    fn id(&self) -> usize;
}

/// Ends in the rows that the head takes, as they are.
pub struct Normalized {
    /// Numbers of a row.
    pub d: usize,
}

impl Ends for Normalized {
    fn embed(&self, _: &mut Ctx, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn logits(&self) -> usize {
        self.d
    }

    fn write_to(&self, cx: &mut Ctx, rows: &Tensor, out: &Tensor) -> Result<()> {
        cx.exec("head", &Pointwise::new(cx.view(rows)?, cx.view(out)?))
    }

    fn id(&self) -> usize {
        usize::MAX
    }
}

/// The decoder with its head.
pub struct Decoder {
    plan: TextPlan,
    path: String,
    embedding: Embedding,
    learned: Option<Embedding>,
    embed_norm: Option<Norm>,
    layers: Vec<Layer>,
    /// None where the last layer's rows are normalized.
    norm: Option<Norm>,
    head: Head,
    ropes: Vec<RopeTable>,
    /// Factors of queries in layers that do not turn them.
    tempered: Option<Tempered>,
    /// Inputs of all layers.
    inputs: Option<Inputs>,
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
        let at = scope.role(Role::Embedding).at(plan.names.embed);
        let embedding = Embedding::load(cx, &at, plan.vocab + plan.embed_more, plan.d, plan.embed_scale)?;
        Self::with_embedding(cx, scope, head, plan, config, embedding)
    }

    /// As [`load`](Self::load), with token embeddings that something else reads too.
    pub fn with_embedding(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        head: &Scope<'_>,
        plan: TextPlan,
        config: &str,
        embedding: Embedding,
    ) -> Result<Self> {
        let embedding = match &plan.placeholders {
            Some((ids, by)) => embedding.with_stand_in(ids, *by),
            None => embedding,
        };
        let outer = scope.role(Role::Embedding);
        let scope = scope.role(Role::Decoder);
        let d = plan.d;
        let learned = match plan.learned {
            Some(learned) => {
                let rows = (learned.first, plan.max_positions);
                Some(Embedding::positions(cx, &outer.at(learned.name), rows, d)?)
            }
            None => None,
        };
        let embed_norm = plan.embed_norm.map(|name| norm_of(cx, &outer.at(name), &plan)).transpose()?;
        let mut layers = Vec::new();
        for (i, &of_layer) in plan.layers.iter().enumerate() {
            layers.push(Layer::load(cx, &scope.at(plan.names.layers).at(i), &plan, of_layer)?);
        }
        let head = Head::load(cx, head, &plan, &embedding)?;
        let norm = match plan.norms {
            Norms::After => None,
            _ => Some(norm_of(cx, &scope.at(plan.names.norm), &plan)?),
        };
        let mut ropes = Vec::with_capacity(plan.ropes.len());
        for (number, rope) in plan.ropes.iter().enumerate() {
            let turned = plan.layers.iter().find(|layer| layer.rope == number);
            ropes.push(rope.table(cx, config, turned.map_or(plan.head_dim, |layer| layer.head_dim))?);
        }
        let path = scope.prefix();
        let tempered =
            plan.temper.map(|temper| Tempered::new(cx, path, temper, plan.max_positions)).transpose()?;
        let inputs = plan.inputs.map(|inputs| Inputs::load(cx, &scope, &plan, inputs)).transpose()?;
        Ok(Self {
            path: scope.prefix().to_owned(),
            embedding,
            learned,
            embed_norm,
            layers,
            norm,
            head,
            ropes,
            tempered,
            inputs,
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
        self.forward_with(cx, batch, &batch.memory, kv)
    }

    /// As [`forward`](Self::forward) with another memory of the sequences whose first tokens are in the batch, `[rows, d]` each.
    pub fn forward_with(
        &self,
        cx: &mut Ctx,
        batch: &Packed,
        memory: &[Tensor],
        kv: &KvCache,
    ) -> Result<Tensor> {
        self.run(cx, batch, memory, kv, None)
    }

    /// As [`forward`](Self::forward) between other ends: `batch: [tokens]  ->  f32 [rows_wanted, width]`.
    pub fn forward_between(
        &self,
        cx: &mut Ctx,
        batch: &Packed,
        kv: &KvCache,
        ends: &dyn Ends,
    ) -> Result<Tensor> {
        self.run(cx, batch, &batch.memory, kv, Some(ends))
    }

    fn run(
        &self,
        cx: &mut Ctx,
        batch: &Packed,
        memory: &[Tensor],
        kv: &KvCache,
        ends: Option<&dyn Ends>,
    ) -> Result<Tensor> {
        let width = ends.map_or(self.plan.vocab, Ends::logits);
        let logits = cx.alloc(&[batch.rows_wanted, width], DType::F32)?;
        let work = |cx: &mut Ctx| self.pass(cx, batch, memory, kv, (ends, &logits));
        // A step of one token a sequence is the same launches each time.
        if batch.repeats() {
            let mut key = batch.replay_key();
            key.number(self.id).view(logits.view());
            if let Some(ends) = ends {
                key.number(ends.id());
            }
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

    fn pass(
        &self,
        cx: &mut Ctx,
        batch: &Packed,
        memory: &[Tensor],
        kv: &KvCache,
        (ends, logits): (Option<&dyn Ends>, &Tensor),
    ) -> Result<()> {
        let memory = together(cx, &self.path, memory)?;
        if let Some(memory) = &memory {
            for cross in self.layers.iter().filter_map(Layer::memory) {
                cx.scope(|cx| cross.keep(cx, memory, batch, kv))?;
            }
        }
        let own = ends.map(|ends| ends.embed(cx, &batch.ids)).transpose()?.flatten();
        let h = own.map_or_else(|| self.embedding.forward(cx, &batch.ids), Ok)?;
        for (features, rows) in &batch.features {
            let op = ScatterRows { src: cx.view(features)?, rows: cx.view(rows)?, out: cx.view(&h)? };
            cx.exec(&self.path, &op)?;
        }
        if let Some(learned) = &self.learned {
            let places = learned.forward(cx, &batch.positions.narrow(0, 0, 1)?.reshape(&[batch.tokens])?)?;
            add_rows(cx, &self.path, &h, &places)?;
        }
        if let Some(norm) = &self.embed_norm {
            norm.write_to(cx, &h, &h)?;
        }
        cx.stage(Stage::EMBEDDINGS, &h)?;
        let inputs = self.inputs.as_ref().map(|inputs| inputs.forward(cx, &h, batch)).transpose()?;
        // Where norms follow a sum, the sum of one layer is taken on the way into the norm of the next.
        let normed = match self.plan.norms {
            Norms::Before | Norms::Shared | Norms::After => None,
            Norms::Around => Some(cx.alloc(h.shape(), cx.dtype())?),
        };
        if let (Some(normed), Some(first)) = (&normed, self.layers.first()) {
            first.norm1.write_to(cx, &h, normed)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(i + 1).map_or(self.norm.as_ref(), |next| Some(&next.norm1));
            let input = match (&self.inputs, &inputs) {
                (Some(all), Some(rows)) => Some(all.of(rows, i)?),
                _ => None,
            };
            let io = Io { h: &h, around: normed.as_ref().zip(next), input: input.as_ref() };
            cx.segment(|cx| self.layer(cx, layer, &io, batch, kv))?;
            cx.stage(Stage::text_layer(i), &h)?;
            let added = self.add_deep(cx, i, &h, batch)?;
            if let Some((normed, next)) = normed.as_ref().zip(next).filter(|_| added) {
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
        let norm = self.norm.as_ref().filter(|_| normed.is_none());
        if let Some(ends) = ends {
            let rows = norm.map_or_else(|| Ok(rows.clone()), |norm| norm.forward(cx, &rows))?;
            return ends.write_to(cx, &rows, logits);
        }
        self.head.write_to(cx, &self.plan, norm, &rows, logits)?;
        self.finish(cx, logits)
    }

    /// What the head makes of rows that are normalized: `rows: [rows, d]  ->  f32 [rows, vocab]`.
    pub fn head(&self, cx: &mut Ctx, rows: &Tensor) -> Result<Tensor> {
        let logits = cx.alloc(&[rows.size(0), self.plan.vocab], DType::F32)?;
        self.head.write_to(cx, &self.plan, None, rows, &logits)?;
        self.finish(cx, &logits)?;
        Ok(logits)
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

    fn layer(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        &Io { h, around, input: own }: &Io<'_>,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<()> {
        let Some(norm2) = &layer.norm2 else { return self.shared_layer(cx, layer, h, batch, kv) };
        let input = match around {
            _ if self.plan.norms == Norms::After => Rows { norm: None, x: h },
            Some((x, _)) => Rows { norm: None, x },
            None => Rows { norm: Some(&layer.norm1), x: h },
        };
        let mixed = self.mix(cx, layer, &input, batch, kv)?;
        if self.plan.norms == Norms::After {
            layer.out.add_to(cx, &mixed, h)?;
            layer.norm1.write_to(cx, h, h)?;
            if let Some((cross, out, norm)) = layer.cross.as_deref() {
                let q = cross.q.forward_plain(cx, h)?;
                let mixed = cross.attend(cx, &self.plan, &q, batch, kv)?;
                out.add_to(cx, &mixed, h)?;
                norm.write_to(cx, h, h)?;
            }
            layer.mlp.add_to(cx, h, h, batch.repeats())?;
            return norm2.write_to(cx, h, h);
        }
        if let Mixer::Cross(_, [of_attention, of_mlp]) = layer.mixer {
            let out = layer.out.forward(cx, &mixed)?;
            self.add_scaled(cx, layer, &out, of_attention, None, h)?;
            let x = norm2.forward(cx, h)?;
            let out = layer.mlp.forward(cx, &x, batch.repeats())?;
            // Tokens that have no picture before them keep what they have.
            return self.add_scaled(cx, layer, &out, of_mlp, batch.reached.as_ref(), h);
        }
        match (around, &layer.after_attention, &layer.after_mlp) {
            (Some((normed, next)), Some(after_attention), Some(after_mlp)) => {
                let out = layer.out.forward(cx, &mixed)?;
                after_attention.write_to(cx, &out, &out)?;
                norm2.add_to(cx, h, &out, normed)?;
                let mut out = layer.mlp.forward(cx, normed, batch.repeats())?;
                if let Some(beside) = &layer.beside {
                    beside.add_to(cx, h, &out, batch.repeats())?;
                }
                after_mlp.write_to(cx, &out, &out)?;
                if let (Some(taking), Some(own)) = (&layer.taking, own) {
                    add_rows(cx, &layer.path, h, &out)?;
                    out = taking.forward(cx, h, own)?;
                }
                if layer.factor == 1.0 {
                    return next.add_to(cx, h, &out, normed);
                }
                let (view, add) = (cx.view(h)?, Some(cx.view(&out)?));
                let sum = Pointwise { scale: layer.factor, add, ..Pointwise::new(view.clone(), view) };
                cx.exec(&layer.path, &sum)?;
                next.write_to(cx, h, normed)
            }
            _ if self.plan.residual != 1.0 => {
                let factor = self.plan.residual;
                let out = layer.out.forward(cx, &mixed)?;
                self.add_scaled(cx, layer, &out, factor, None, h)?;
                let x = norm2.forward(cx, h)?;
                let out = layer.mlp.forward(cx, &x, batch.repeats())?;
                self.add_scaled(cx, layer, &out, factor, None, h)
            }
            _ => {
                layer.out.add_to(cx, &mixed, h)?;
                layer.mlp.add_normalized(cx, norm2, h, batch.repeats())
            }
        }
    }

    /// `h += scale * rows * x`.
    fn add_scaled(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        x: &Tensor,
        scale: f32,
        rows: Option<&Tensor>,
        h: &Tensor,
    ) -> Result<()> {
        let (x, h) = (cx.view(x)?, cx.view(h)?);
        let row = rows.map(|rows| cx.view(rows)).transpose()?;
        cx.exec(&layer.path, &Pointwise { scale, row, add: Some(h.clone()), ..Pointwise::new(x, h) })
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
        let mixed = self.mix(cx, layer, &Rows { norm: None, x: &x }, batch, kv)?;
        layer.out.add_to(cx, &mixed, h)?;
        layer.mlp.add_to(cx, &x, h, batch.repeats())
    }

    /// What the tokens of a layer make of each other, from its input.
    fn mix(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        input: &Rows<'_>,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        let projected = |cx: &mut Ctx| layer.mixer.input().project(cx, input.norm, input.x);
        match &layer.mixer {
            Mixer::Attention(heads) => self.attention(cx, layer, heads, input, batch, kv),
            Mixer::Cross(cross, _) => {
                let q = projected(cx)?;
                cross.attend(cx, &self.plan, &q, batch, kv)
            }
            Mixer::ShortConv(conv) => {
                let input = projected(cx)?;
                conv.forward(cx, &input, layer.plan.kv, batch, kv)
            }
            Mixer::Delta(rule, state) => {
                let input = projected(cx)?;
                rule.forward(cx, &input, layer.plan, *state, batch, kv)
            }
        }
    }

    /// `input: [tokens, d]  ->  [tokens, heads_q head_dim]`.
    fn attention(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        heads: &Heads,
        input: &Rows<'_>,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<Tensor> {
        let qkv = heads.qkv.room(cx, input.x)?;
        let LayerPlan { heads_kv, head_dim, keys, .. } = layer.plan;
        let (heads_q, tokens) = (self.plan.heads_q, batch.tokens);
        // Queries may have gates beside them, head by head.
        let wide = if self.plan.output_gate { 2 * heads_q } else { heads_q };
        let part = |first: usize, heads: usize| {
            qkv.narrow(1, first * head_dim, heads * head_dim)?.reshape(&[tokens, heads, head_dim])
        };
        let k = part(wide, if keys == Keys::Earlier { 0 } else { heads_kv })?;
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
        let tempered = self.tempered.as_ref().filter(|_| !self.plan.turns(&layer.plan));
        // Whether the projections are turned as they are.
        let plain = keys == Keys::Own && gate.is_none() && heads.v.is_none() && tempered.is_none();
        if !plain {
            heads.qkv.write_to(cx, input.norm, input.x, &qkv)?;
        }
        let v = match keys {
            Keys::Own => Some(part(wide + heads_kv, heads_kv)?),
            Keys::AlsoValues => {
                let width = heads_kv * head_dim;
                let v = cx.alloc(&[tokens, width], cx.dtype())?;
                let keys = qkv.narrow(1, wide * head_dim, width)?;
                cx.exec(&layer.path, &Pointwise::new(cx.view(&keys)?, cx.view(&v)?))?;
                Some(v.reshape(&[tokens, heads_kv, head_dim])?)
            }
            Keys::Earlier => None,
        };
        if let (Some(norm), Some(v)) = (&heads.v, &v) {
            norm.heads(cx, v, &v.narrow(1, 0, 0)?, norm, &batch.positions)?;
        }
        if let Some(tempered) = tempered {
            tempered.apply(cx, &qkv.narrow(1, 0, heads_q * head_dim)?, &batch.positions)?;
        }
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
            kv: match &v {
                Some(v) => Some(KvWrite {
                    v: cx.view(v)?,
                    k_pages: k_pages.clone(),
                    v_pages: v_pages.clone(),
                    slots: cx.view(&placed.slots)?,
                }),
                None => None,
            },
        };
        let turned = match ops::Heads::of(&rope).filter(|_| plain) {
            Some(all) => {
                let q = qkv.narrow(1, 0, heads_q * head_dim)?;
                heads.qkv.write_heads(cx, input.norm, input.x, all, &q)?
            }
            None => false,
        };
        if plain && !turned {
            heads.qkv.write_to(cx, input.norm, input.x, &qkv)?;
        }
        if !turned {
            cx.exec(&layer.path, &rope)?;
        }
        let scores = (self.plan.scale, self.plan.softcap);
        let out = paged(cx, &layer.path, &q, layer.plan.kv, batch, kv, scores)?;
        if let Some(gate) = gate {
            let result = cx.view(&out)?;
            cx.exec(&layer.path, &ops::Gate { x: result.clone(), gate: cx.view(&gate)?, out: result })?;
        }
        out.reshape(&[tokens, heads_q * head_dim])
    }
}

/// Rows of `x` in the order of `ids`.
fn gather(cx: &mut Ctx, path: &str, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let out = cx.alloc(&[ids.size(0), x.size(1)], cx.dtype())?;
    let table = Weights::dense(cx.view(x)?, None)?;
    cx.exec(path, &GatherRows { table, ids: cx.view(ids)?, scale: 1.0, out: cx.view(&out)? })?;
    Ok(out)
}

impl Heads {
    fn load(cx: &mut Ctx, attn: &Scope<'_>, plan: &TextPlan, of_layer: LayerPlan) -> Result<Self> {
        let LayerPlan { heads_kv, head_dim, keys, .. } = of_layer;
        let gates = if plan.output_gate { 2 } else { 1 };
        let (q_rows, kv_rows) = (gates * plan.heads_q * head_dim, heads_kv * head_dim);
        let [q, k, v] = plan.names.qkv.map(|name| attn.at(name));
        let mut qkv = vec![(q, q_rows)];
        if keys != Keys::Earlier {
            qkv.push((k, kv_rows));
        }
        if keys == Keys::Own {
            qkv.push((v, kv_rows));
        }
        let norm = |cx: &mut Ctx, name: &str| {
            Norm::unshifted(cx, &attn.at(name), head_dim, plan.norm, (plan.norm_eps, plan.norm_offset))
        };
        let [q, k] = plan.names.qk_norms;
        let qk = if plan.qk_norm {
            let q = norm(cx, q)?;
            let k = if keys == Keys::Earlier { q.clone() } else { norm(cx, k)? };
            Some((q, k))
        } else if plan.qk_bare && plan.turns(&of_layer) {
            let bare = Norm::bare(cx, attn.prefix(), head_dim, plan.norm_eps)?;
            Some((bare.clone(), bare))
        } else {
            None
        };
        let v = if plan.value_norm && keys != Keys::Earlier {
            Some(Norm::bare(cx, attn.prefix(), head_dim, plan.norm_eps)?)
        } else {
            None
        };
        Ok(Self { qkv: Stacked::load(cx, attn.prefix(), &qkv, plan.d, plan.qkv_bias)?, qk, v })
    }
}

/// A norm of the plan's kind.
fn norm_of(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan) -> Result<Norm> {
    match plan.norm_bias {
        true => Norm::load(cx, scope, plan.d, plan.norm_eps, plan.norm),
        false => Norm::unshifted(cx, scope, plan.d, plan.norm, (plan.norm_eps, plan.norm_offset)),
    }
}

impl Layer {
    /// What attends to memory in it.
    fn memory(&self) -> Option<&Cross> {
        match &self.mixer {
            Mixer::Cross(cross, _) => Some(cross),
            _ => self.cross.as_deref().map(|(cross, ..)| cross),
        }
    }

    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TextPlan, of_layer: LayerPlan) -> Result<Self> {
        let (names, ffn) = (plan.names, scope.at(plan.names.mlp));
        let d = plan.d;
        let norm = |cx: &mut Ctx, scope: Scope<'_>| norm_of(cx, &scope, plan);
        let factor = if plan.layer_factor { factor(scope)? } else { 1.0 };
        // What is added last has the factor already.
        let taking = plan.inputs.map(|inputs| Taking::load(cx, scope, plan, inputs, factor)).transpose()?;
        let (before_mlp, after_attention, after_mlp) = match plan.norms {
            Norms::Before | Norms::After => (names.norm2, None, None),
            Norms::Shared => ("", None, None),
            Norms::Around => (
                names.around[1],
                Some(norm(cx, scope.at(names.around[0]))?),
                Some(if factor == 1.0 || taking.is_some() {
                    norm(cx, scope.at(names.around[2]))?
                } else {
                    Norm::rms_times(cx, &scope.at(names.around[2]), "weight", d, plan.norm_eps, factor)?
                }),
            ),
        };
        let (mixing, out, width, bias) = match (of_layer.mix, plan.conv, plan.delta) {
            (Mix::ShortConv, Some(conv), _) => (scope.at("conv"), "out_proj", d, conv.bias),
            (Mix::Delta { .. }, _, Some(delta)) => {
                (scope.at("linear_attn"), "out_proj", delta.width(), false)
            }
            _ => (scope.at(names.attention), names.out, plan.heads_q * of_layer.head_dim, plan.out_bias),
        };
        let (mixing, out) = match plan.cross.filter(|_| of_layer.mix == Mix::Cross) {
            Some(cross) => (scope.at(cross.module), cross.out),
            None => (mixing, out),
        };
        let cross = match (&plan.cross, of_layer.cross) {
            (Some(cross), Some(place)) => {
                let at = scope.at(cross.module);
                let width = plan.heads_q * plan.head_dim;
                Some(Box::new((
                    Cross::load(cx, &at, plan, cross, place)?,
                    Linear::load(cx, &at.at(cross.out), d, width, plan.out_bias)?,
                    norm(cx, scope.at(cross.norm))?,
                )))
            }
            _ => None,
        };
        let experts = plan.experts.as_ref().filter(|_| of_layer.experts);
        folds::declare(scope, plan, of_layer);
        Ok(Self {
            plan: of_layer,
            path: mixing.prefix().to_owned(),
            norm1: norm(cx, scope.at(names.norm1))?,
            mixer: Mixer::load(cx, scope, plan, of_layer)?,
            out: Linear::load(cx, &mixing.at(out), d, width, bias)?,
            after_attention,
            norm2: if before_mlp.is_empty() { None } else { Some(norm(cx, scope.at(before_mlp))?) },
            mlp: match experts.filter(|_| !plan.experts_beside) {
                Some(experts) => Mlp::experts(cx, &ffn, experts)?,
                None if !plan.mlp_gated => {
                    let [_, up, down] = names.projections;
                    Mlp::plain(cx, &ffn, [up, down], (d, of_layer.mlp), plan.act, plan.mlp_bias)?
                }
                None => Mlp::gated(cx, &ffn, names.projections, (d, of_layer.mlp), plan.act, plan.mlp_bias)?,
            },
            beside: match experts.filter(|_| plan.experts_beside) {
                Some(experts) => Some(Beside::load(cx, scope, plan, experts)?),
                None => None,
            },
            after_mlp,
            taking,
            factor,
            cross,
        })
    }
}
