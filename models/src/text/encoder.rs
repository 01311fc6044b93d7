//! Encoders of rows that all see each other, and perhaps a memory: of texts (BERT, BART), of learned queries (Q-Former). A norm follows each
//! sum.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Stage, Tensor};
use ocelli_kernels::ops::{Activation, Attention, AttentionKv, Seen};

use crate::layers::{Embedding, Linear, Norm, Stacked, add_rows, copy_rows};

/// Names of modules in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderNames {
    /// Token embeddings, of encoders that read texts.
    pub words: &'static str,
    /// Position embeddings, likewise.
    pub positions: &'static str,
    /// Norm of the embeddings.
    pub embed_norm: &'static str,
    /// The layers, without their numbers.
    pub layers: &'static str,
    /// Attention in a layer.
    pub attention: &'static str,
    /// Its query, key and value projections.
    pub qkv: [&'static str; 3],
    /// Its output projection.
    pub out: &'static str,
    /// The norm after it, in the layer.
    pub norm: &'static str,
    /// Attention to the memory, whose projections have the same names.
    pub cross: &'static str,
    /// The norm after that, in the layer.
    pub cross_norm: &'static str,
    /// Up and down projections of the MLP.
    pub mlp: [&'static str; 2],
    /// The norm after it.
    pub mlp_norm: &'static str,
}

/// Names as BERT has them.
pub const BERT_NAMES: EncoderNames = EncoderNames {
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    embed_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    attention: "attention",
    qkv: ["self.query", "self.key", "self.value"],
    out: "output.dense",
    norm: "attention.output.LayerNorm",
    cross: "crossattention",
    cross_norm: "crossattention.output.LayerNorm",
    mlp: ["intermediate.dense", "output.dense"],
    mlp_norm: "output.LayerNorm",
};

/// Attention of an encoder to a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderCross {
    /// Features of a row of the memory.
    pub memory: usize,
    /// Each layer has it whose number is a multiple of this one.
    pub every: usize,
}

/// An encoder.
#[derive(Clone, Debug)]
pub struct EncoderPlan {
    /// Tokens of the vocabulary; 0: it reads no texts.
    pub vocab: usize,
    /// Most tokens of a text.
    pub positions: usize,
    /// Row of position 0 in the table.
    pub first: usize,
    /// Factor of token embeddings.
    pub embed_scale: f32,
    /// Features of a row.
    pub d: usize,
    /// Features between the layers of an MLP.
    pub mlp: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Added to variances.
    pub eps: f32,
    /// Activation of the MLP.
    pub act: Activation,
    /// Attention to a memory, if there is any.
    pub cross: Option<EncoderCross>,
    /// Names in the file.
    pub names: EncoderNames,
}

struct Layer {
    path: String,
    qkv: Stacked,
    out: Linear,
    norm: Norm,
    cross: Option<Box<CrossLayer>>,
    up: Linear,
    down: Linear,
    mlp_norm: Norm,
}

struct CrossLayer {
    q: Linear,
    kv: Stacked,
    out: Linear,
    norm: Norm,
}

/// An encoder with the embeddings before it.
pub struct Encoder {
    plan: EncoderPlan,
    path: String,
    words: Option<(Embedding, Embedding)>,
    norm: Norm,
    layers: Vec<Layer>,
}

/// Rows of several sequences one after the other: where each begins, and where the last one ends.
struct Bounds {
    starts: Tensor,
    sizes: Vec<usize>,
}

impl Bounds {
    fn of(cx: &mut Ctx, starts: &[usize]) -> Result<Self> {
        let list: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
        let sizes = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        Ok(Self { starts: cx.upload(&[list.len()], &list)?, sizes })
    }

    fn most(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(0)
    }
}

impl Encoder {
    /// Loads the encoder below `scope`. The token embeddings are `words` where something else has them.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        plan: EncoderPlan,
        words: Option<Embedding>,
    ) -> Result<Self> {
        let (d, names) = (plan.d, plan.names);
        let tables = scope.role(Role::Embedding);
        let scope = scope.role(Role::Decoder);
        let words = match (plan.vocab, words) {
            (0, _) => None,
            (_, Some(words)) => Some(words),
            (vocab, None) => Some(Embedding::load(cx, &tables.at(names.words), vocab, d, plan.embed_scale)?),
        };
        let words = match words {
            Some(words) => {
                let rows = (plan.first, plan.positions);
                Some((words, Embedding::positions(cx, &tables.at(names.positions), rows, d)?))
            }
            None => None,
        };
        let norm = Norm::layer(cx, &scope.at(names.embed_norm), d, plan.eps)?;
        let mut layers = Vec::new();
        for i in 0..plan.layers {
            layers.push(Layer::load(cx, &scope.at(names.layers).at(i), &plan, i)?);
        }
        Ok(Self { path: scope.prefix().to_owned(), words, norm, layers, plan })
    }

    /// Rows of a text before the first layer's norm, `[tokens, d]`; `features` replace embeddings of neighbouring tokens, from the one
    /// that is named on.
    pub fn embed(&self, cx: &mut Ctx, text: &[u32], features: &[(Tensor, usize)]) -> Result<Tensor> {
        let (tokens, most) = (text.len(), self.plan.positions);
        let Some((words, positions)) = &self.words else {
            return Err(Error::Request(format!("{}: expected no text", self.path)));
        };
        if tokens == 0 || tokens > most {
            return Err(Error::Request(format!("text: expected 1 to {most} tokens, found {tokens}")));
        }
        let ids: Vec<i32> = text.iter().map(|&id| id as i32).collect();
        let places: Vec<i32> = (0..tokens as i32).collect();
        let (ids, places) = (cx.upload(&[tokens], &ids)?, cx.upload(&[tokens], &places)?);
        let h = words.forward(cx, &ids)?;
        for (rows, at) in features {
            copy_rows(cx, &self.path, rows, &h.narrow(0, *at, rows.size(0))?)?;
        }
        let places = positions.forward(cx, &places)?;
        add_rows(cx, &self.path, &h, &places)?;
        Ok(h)
    }

    /// Runs rows through the norm of embeddings and the layers, in place: `h: [rows, d]`, those from one of `starts` to the next being
    /// one sequence. `memory: [rows, memory]` has the rows that each sequence sees, with where those of each begin. `shown` gets the
    /// number of each layer when its result stands.
    pub fn run(
        &self,
        cx: &mut Ctx,
        h: &Tensor,
        starts: &[usize],
        memory: Option<(&Tensor, &[usize])>,
        shown: &mut dyn FnMut(&mut Ctx, usize) -> Result<()>,
    ) -> Result<()> {
        self.norm.write_to(cx, h, h)?;
        cx.stage(Stage::of("encoder_embeds"), h)?;
        let own = Bounds::of(cx, starts)?;
        let memory = match memory {
            Some((rows, starts)) => Some((rows, Bounds::of(cx, starts)?)),
            None => None,
        };
        for (number, layer) in self.layers.iter().enumerate() {
            cx.segment(|cx| {
                let qkv = layer.qkv.forward_plain(cx, h)?;
                let part = |i: usize| self.heads(&qkv, i);
                let mixed = self.attend(cx, layer, [part(0)?, part(1)?, part(2)?], (&own, &own))?;
                layer.out.add_to(cx, &mixed, h)?;
                layer.norm.write_to(cx, h, h)?;
                if let (Some(cross), Some((rows, bounds))) = (&layer.cross, &memory) {
                    let q = cross.q.forward(cx, h)?;
                    let kv = cross.kv.forward_plain(cx, rows)?;
                    let parts = [self.heads(&q, 0)?, self.heads(&kv, 0)?, self.heads(&kv, 1)?];
                    let mixed = self.attend(cx, layer, parts, (&own, bounds))?;
                    cross.out.add_to(cx, &mixed, h)?;
                    cross.norm.write_to(cx, h, h)?;
                }
                let up = layer.up.forward_act(cx, h, self.plan.act)?;
                layer.down.add_to(cx, &up, h)?;
                layer.mlp_norm.write_to(cx, h, h)
            })?;
            shown(cx, number)?;
        }
        Ok(())
    }

    /// Projection `i` of those that lie side by side, in heads.
    fn heads(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        let (d, heads) = (self.plan.d, self.plan.heads);
        x.narrow(1, i * d, d)?.reshape(&[x.size(0), heads, d / heads])
    }

    fn attend(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        [q, k, v]: [Tensor; 3],
        (own, seen): (&Bounds, &Bounds),
    ) -> Result<Tensor> {
        let out = cx.alloc(q.shape(), cx.dtype())?;
        let kv_starts = cx.view(&seen.starts)?;
        let op = Attention {
            q: cx.view(&q)?,
            kv: AttentionKv::Packed { k: cx.view(&k)?, v: cx.view(&v)?, kv_starts },
            q_starts: cx.view(&own.starts)?,
            seen: Seen::All,
            scale: 1.0 / ((self.plan.d / self.plan.heads) as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&out)?,
            max_q: own.most(),
            max_kv: seen.most(),
            pairs: own.sizes.iter().zip(&seen.sizes).map(|(q, kv)| (q * kv) as u64).sum(),
        };
        cx.exec(&layer.path, &op)?;
        out.reshape(&[q.size(0), self.plan.d])
    }
}

impl Layer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &EncoderPlan, number: usize) -> Result<Self> {
        let (d, mlp, names) = (plan.d, plan.mlp, plan.names);
        let own = scope.at(names.attention);
        let qkv = names.qkv.map(|name| (own.at(name), d));
        let norm = |cx: &mut Ctx, name: &str| Norm::layer(cx, &scope.at(name), d, plan.eps);
        let cross = match plan.cross {
            Some(EncoderCross { memory, every }) if number.is_multiple_of(every) => {
                let cross = scope.at(names.cross);
                let [q, k, v] = names.qkv.map(|name| cross.at(name));
                Some(Box::new(CrossLayer {
                    q: Linear::load(cx, &q, d, d, true)?,
                    kv: Stacked::load(cx, cross.prefix(), &[(k, d), (v, d)], memory, true)?,
                    out: Linear::load(cx, &cross.at(names.out), d, d, true)?,
                    norm: norm(cx, names.cross_norm)?,
                }))
            }
            _ => None,
        };
        let [up, down] = names.mlp;
        Ok(Self {
            path: own.prefix().to_owned(),
            qkv: Stacked::load(cx, own.prefix(), &qkv, d, true)?,
            out: Linear::load(cx, &own.at(names.out), d, d, true)?,
            norm: norm(cx, names.norm)?,
            cross,
            up: Linear::load(cx, &scope.at(up), mlp, d, true)?,
            down: Linear::load(cx, &scope.at(down), d, mlp, true)?,
            mlp_norm: norm(cx, names.mlp_norm)?,
        })
    }
}
