//! The Llama decoder: `LlamaForCausalLM` of transformers.

use ocelli_engine::batch::Packed;
use ocelli_engine::kv::{KvCache, KvLayout};
use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Error, ReplayKey, Result, Stage, Tensor};
use ocelli_kernels::ops::{
    Activation, Attention, AttentionKv, GatherRows, KvWrite, Mask, Rope, RopeStyle, ScatterRows,
};
use ocelli_kernels::{View, Weights};
use serde::Deserialize;

use crate::layers::{Embedding, Linear, Norm, RopeConfig, RopeTable, Stacked};

/// `text_config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Features of a token.
    pub hidden_size: usize,
    /// Features between the layers of an MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key heads; without it as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// Elements of a head; without it `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// Most tokens of a sequence.
    pub max_position_embeddings: usize,
    /// Added to mean squares.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies (transformers 4).
    pub rope_theta: Option<f64>,
    /// Rotary scaling (transformers 4).
    pub rope_scaling: Option<RopeConfig>,
    /// Rotary parameters (transformers 5).
    pub rope_parameters: Option<RopeConfig>,
    /// Activation of the gate.
    pub hidden_act: String,
    /// Whether head and embedding are one matrix, where the outer configuration does not say.
    pub tie_word_embeddings: Option<bool>,
}

impl Default for LlamaConfig {
    /// The defaults of `LlamaConfig`.
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            hidden_act: "silu".into(),
            tie_word_embeddings: None,
        }
    }
}

impl LlamaConfig {
    /// Elements of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0))
    }

    /// Key heads.
    #[must_use]
    pub fn heads_kv(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// What the cache keeps for each token.
    #[must_use]
    pub fn kv(&self) -> KvLayout {
        KvLayout { layers: self.num_hidden_layers, heads: self.heads_kv(), head_dim: self.head_dim() }
    }

    fn rope(&self) -> RopeConfig {
        self.rope_parameters.clone().or_else(|| self.rope_scaling.clone()).unwrap_or_default()
    }
}

struct Layer {
    path: String,
    norm1: Norm,
    qkv: Stacked,
    out: Linear,
    norm2: Norm,
    gate_up: Stacked,
    down: Linear,
}

/// The decoder with its head.
pub struct Llama {
    config: LlamaConfig,
    path: String,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    tied: bool,
    rope: RopeTable,
    /// Tells this decoder's launches from those of others.
    id: usize,
}

impl Llama {
    /// Loads the decoder below `scope`; `head` is the scope of `lm_head`, `None` where head and embedding are tied.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        head: Option<&Scope<'_>>,
        config: &LlamaConfig,
        config_path: &str,
    ) -> Result<Self> {
        let bad = |reason: String| Error::Config { path: config_path.to_owned(), reason };
        let (d, mlp, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (heads_q, heads_kv, head_dim) =
            (config.num_attention_heads, config.heads_kv(), config.head_dim());
        if config.hidden_act != "silu" {
            return Err(bad(format!("text_config.hidden_act: expected silu, found {}", config.hidden_act)));
        }
        if heads_kv == 0 || !heads_q.is_multiple_of(heads_kv) || head_dim == 0 || !head_dim.is_multiple_of(2)
        {
            return Err(bad(format!(
                "text_config: expected num_attention_heads a multiple of num_key_value_heads and an even head_dim, \
                 found {heads_q}, {heads_kv} and {head_dim}"
            )));
        }
        let embedding = Embedding::load(cx, &scope.at("embed_tokens"), vocab, d)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let layer = scope.at(format_args!("layers.{i}"));
            let (attn, ffn) = (layer.at("self_attn"), layer.at("mlp"));
            let (q_rows, kv_rows) = (heads_q * head_dim, heads_kv * head_dim);
            let qkv =
                [(attn.at("q_proj"), q_rows), (attn.at("k_proj"), kv_rows), (attn.at("v_proj"), kv_rows)];
            let gate_up = [(ffn.at("gate_proj"), mlp), (ffn.at("up_proj"), mlp)];
            layers.push(Layer {
                path: attn.prefix().to_owned(),
                norm1: Norm::rms(cx, &layer.at("input_layernorm"), d, config.rms_norm_eps)?,
                qkv: Stacked::load(cx, attn.prefix(), &qkv, d)?,
                out: Linear::load(cx, &attn.at("o_proj"), d, q_rows)?,
                norm2: Norm::rms(cx, &layer.at("post_attention_layernorm"), d, config.rms_norm_eps)?,
                gate_up: Stacked::load(cx, ffn.prefix(), &gate_up, d)?,
                down: Linear::load(cx, &ffn.at("down_proj"), d, mlp)?,
            });
        }
        let tied = head.is_none();
        let head = match head {
            Some(scope) => Linear::load(cx, scope, vocab, d)?,
            None => Linear::tied("lm_head", embedding.weights().clone()),
        };
        Ok(Self {
            config: config.clone(),
            path: scope.prefix().to_owned(),
            embedding,
            layers,
            norm: Norm::rms(cx, &scope.at("norm"), d, config.rms_norm_eps)?,
            head,
            tied,
            rope: config.rope().table(cx, config_path, head_dim, config.rope_theta.unwrap_or(10_000.0))?,
            id: ReplayKey::unique(),
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Matrices of the layers.
    pub fn weights(&self) -> impl Iterator<Item = &Weights> {
        self.layers.iter().flat_map(|layer| {
            let stacked = layer.qkv.weights().chain(layer.gate_up.weights());
            stacked.chain([layer.out.weights(), layer.down.weights()])
        })
    }

    /// Embedding, and the head where it is not the embedding itself.
    pub fn outer_weights(&self) -> impl Iterator<Item = &Weights> {
        std::iter::once(self.embedding.weights()).chain((!self.tied).then(|| self.head.weights()))
    }

    /// Vectors of the norms.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        self.layers
            .iter()
            .flat_map(|layer| layer.norm1.views().chain(layer.norm2.views()))
            .chain(self.norm.views())
    }

    /// `batch: [tokens]  ->  f32 [rows_wanted, vocab]`; image features replace embeddings, keys and values go to `kv`.
    pub fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        let (d, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let logits = cx.alloc(&[batch.rows_wanted, vocab], ocelli_kernels::DType::F32)?;
        let work = |cx: &mut Ctx| {
            let h = self.embedding.forward(cx, &batch.ids)?;
            for (features, rows) in &batch.images {
                let op = ScatterRows { src: cx.view(features)?, rows: cx.view(rows)?, out: cx.view(&h)? };
                cx.exec(&self.path, &op)?;
            }
            cx.stage(Stage::Embeddings, &h)?;
            for (i, layer) in self.layers.iter().enumerate() {
                cx.scope(|cx| self.layer(cx, layer, i, &h, batch, kv))?;
                cx.stage(Stage::TextLayer(i), &h)?;
            }
            if batch.rows_wanted == 0 {
                return Ok(());
            }
            let rows = match &batch.wanted {
                None => h,
                Some(ids) => {
                    let out = cx.alloc(&[batch.rows_wanted, d], cx.dtype())?;
                    let table = Weights::dense(cx.view(&h)?, None)?;
                    let op = GatherRows { table, ids: cx.view(ids)?, scale: 1.0, out: cx.view(&out)? };
                    cx.exec(&self.path, &op)?;
                    out
                }
            };
            self.head.write_normalized(cx, &self.norm, &rows, &logits)
        };
        // A step of one token a sequence is the same launches each time.
        if batch.max_q == 1 && batch.images.is_empty() {
            let mut key = batch.replay_key();
            key.number(self.id).view(logits.view());
            for (keys, values) in kv.layers() {
                key.view(keys).view(values);
            }
            cx.replay(key, work)?;
        } else {
            cx.scope(work)?;
        }
        cx.stage(Stage::Logits, &logits)?;
        Ok(logits)
    }

    fn layer(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        i: usize,
        h: &Tensor,
        batch: &Packed,
        kv: &KvCache,
    ) -> Result<()> {
        let (heads_q, heads_kv, head_dim) =
            (self.config.num_attention_heads, self.config.heads_kv(), self.config.head_dim());
        let tokens = batch.tokens;
        let qkv = layer.qkv.forward(cx, &layer.norm1, h)?;
        let part = |first: usize, heads: usize| {
            qkv.narrow(1, first * head_dim, heads * head_dim)?.reshape(&[tokens, heads, head_dim])
        };
        let (q, k, v) = (part(0, heads_q)?, part(heads_q, heads_kv)?, part(heads_q + heads_kv, heads_kv)?);
        let Some((k_pages, v_pages)) = kv.layer(i).cloned() else {
            return Err(Error::Request(format!("KV cache: expected pages for layer {i}, found none")));
        };
        let rope = Rope {
            q: cx.view(&q)?,
            k: cx.view(&k)?,
            positions: cx.view(&batch.positions)?,
            inv_freq: cx.view(&self.rope.inv_freq)?,
            pair_axis: None,
            style: RopeStyle::Half,
            attention_scaling: self.rope.attention_scaling,
            norm: None,
            kv: Some(KvWrite {
                v: cx.view(&v)?,
                k_pages: k_pages.clone(),
                v_pages: v_pages.clone(),
                slots: cx.view(&batch.slots)?,
            }),
        };
        cx.exec(&layer.path, &rope)?;
        let out = cx.alloc(&[tokens, heads_q, head_dim], cx.dtype())?;
        let attention = Attention {
            q: cx.view(&q)?,
            kv: AttentionKv::Paged {
                k: k_pages,
                v: v_pages,
                block_table: cx.view(&batch.block_table)?,
                kv_lens: cx.view(&batch.kv_lens)?,
            },
            q_starts: cx.view(&batch.q_starts)?,
            mask: Mask { causal: true, ..Mask::default() },
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&out)?,
            max_q: batch.max_q,
            max_kv: batch.max_kv,
            pairs: batch.pairs,
        };
        cx.exec(&layer.path, &attention)?;
        layer.out.add_to(cx, &out.reshape(&[tokens, heads_q * head_dim])?, h)?;
        let up = layer.gate_up.forward_gated(cx, &layer.norm2, h, Activation::Silu)?;
        layer.down.add_to(cx, &up, h)
    }
}
