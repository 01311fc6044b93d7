//! Plans of decoders with embeddings of positions: BERT's as BLIP has it, OPT, BART's.

use ocelli_engine::Result;
use ocelli_engine::kv::{Blocks, Keep, KvGroup};
use ocelli_kernels::ops::NormKind;

use super::plan::{LLAMA_NAMES, Learned, Names, Sizes};
use super::{BERT_NAMES, CrossPlan, EncoderNames, EncoderPlan, HeadPlan, LayerPlan, Norms, TextPlan};
use crate::fields::Fields;
use crate::layers::{RopeConfig, RopeKind};
use crate::vision::activation;

/// Names as BERT has them.
const BERT: Names = Names {
    embed: "embeddings.word_embeddings",
    layers: "encoder.layer",
    norm1: "attention.output.LayerNorm",
    norm2: "output.LayerNorm",
    mlp: "",
    projections: ["", "intermediate.dense", "output.dense"],
    attention: "attention",
    qkv: ["self.query", "self.key", "self.value"],
    out: "output.dense",
    ..LLAMA_NAMES
};

/// Names as OPT and BART have them.
const BART: Names = Names {
    norm: "final_layer_norm",
    norm1: "self_attn_layer_norm",
    norm2: "final_layer_norm",
    mlp: "",
    projections: ["", "fc1", "fc2"],
    out: "out_proj",
    ..LLAMA_NAMES
};

impl TextPlan {
    /// What they share: biases and shifted norms everywhere, an MLP without a gate, nothing turned. Heads of keys are those of queries.
    fn older(mut self, names: Names) -> Self {
        (self.qkv_bias, self.out_bias, self.mlp_bias) = (true, true, true);
        (self.norm, self.norm_bias, self.norm_eps) = (NormKind::Layer, true, 1e-5);
        self.ropes = vec![RopeConfig { kind: RopeKind::Still, theta: 1.0, ..RopeConfig::default() }];
        Self { mlp_gated: false, names, ..self }
    }

    /// Gives each layer attention to memory after that to tokens.
    fn with_memory(mut self, cross: CrossPlan) -> Self {
        let all = KvGroup {
            layers: self.layers.len(),
            heads: self.heads_kv,
            head_dim: self.head_dim,
            keep: Keep::Memory,
            blocks: Blocks::Nothing,
        };
        self.kv.0.push(all);
        let group = self.kv.0.len() - 1;
        self.layers.iter_mut().enumerate().for_each(|(number, layer)| layer.cross = Some((group, number)));
        Self { cross: Some(cross), ..self }
    }

    /// `BlipTextConfig` as a decoder that attends to rows of `memory` features.
    pub fn blip(text: &Fields<'_>, memory: usize) -> Result<Self> {
        text.model_type(&["blip_text_model"])?;
        text.only("is_decoder", true)?;
        text.only("tie_word_embeddings", true)?;
        let dropouts = ["hidden_dropout_prob", "attention_probs_dropout_prob"];
        text.inert(&dropouts);
        text.inert(&["encoder_hidden_size", "label_smoothing"]);
        let sizes = Sizes {
            vocab: 30_524,
            d: 768,
            mlp: 3072,
            layers: 12,
            heads: 8,
            positions: 512,
            tied: true,
            ..Sizes::default()
        };
        let plan = Self::common(text, &sizes, None)?.older(BERT);
        let cross = CrossPlan {
            memory,
            module: "crossattention",
            qkv: BERT.qkv,
            out: BERT.out,
            norm: "crossattention.output.LayerNorm",
            gates: ["", ""],
        };
        Ok(Self {
            norms: Norms::After,
            norm_eps: text.or("layer_norm_eps", 1e-12)?,
            act: activation(text, "hidden_act", "gelu")?,
            learned: Some(Learned { name: "embeddings.position_embeddings", first: 0 }),
            embed_norm: Some("embeddings.LayerNorm"),
            head: HeadPlan::Transformed,
            ..plan.with_memory(cross)
        })
    }

    /// `OPTConfig`, with norms before.
    pub(super) fn opt(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        for key in ["do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"] {
            text.only(key, true)?;
        }
        text.unset("_remove_final_layer_norm")?;
        text.inert(&["activation_dropout", "layerdrop", "init_std"]);
        let d = text.size("hidden_size", 768)?;
        text.only("word_embed_proj_dim", d)?;
        let mlp = text.size("ffn_dim", 3072)?;
        let sizes = Sizes {
            vocab: 50_272,
            d,
            mlp,
            layers: 12,
            heads: 12,
            positions: 2048,
            tied: true,
            ..Sizes::default()
        };
        let plan = Self::common(text, &sizes, tied)?.older(BART);
        Ok(Self {
            act: activation(text, "activation_function", "relu")?,
            learned: Some(Learned { name: "embed_positions", first: 2 }),
            ..plan
        })
    }

    /// The decoder of `BartConfig`, which attends to what the encoder makes.
    pub fn bart(text: &Fields<'_>) -> Result<Self> {
        text.model_type(&["bart", "florence2_language"])?;
        text.unset("scale_embedding")?;
        text.only("tie_word_embeddings", true)?;
        text.inert(&[
            "activation_dropout",
            "classifier_dropout",
            "init_std",
            "decoder_layerdrop",
            "encoder_layerdrop",
        ]);
        // Those of the encoder, in published files.
        text.inert(&["num_hidden_layers", "hidden_size", "num_attention_heads"]);
        let (d, layers) = (text.size("d_model", 1024)?, text.or("decoder_layers", 12)?);
        let sizes = Sizes {
            vocab: 50_265,
            d,
            mlp: text.size("decoder_ffn_dim", 4096)?,
            layers,
            heads: text.size("decoder_attention_heads", 16)?,
            positions: 1024,
            tied: true,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, Some(true))?.older(BART);
        let fits =
            plan.d == d && plan.heads_q == sizes.heads && layers <= 1 << 16 && d.is_multiple_of(sizes.heads);
        if !fits {
            let what = format!("expected a multiple of decoder_attention_heads {}, found {d}", sizes.heads);
            return Err(text.bad("d_model", what));
        }
        let first = plan.layers.first().copied();
        let first =
            first.ok_or_else(|| text.bad("num_hidden_layers", "expected at least one layer, found none"))?;
        plan.layers = (0..layers).map(|number| LayerPlan { kv: (0, number), ..first }).collect();
        plan.kv.0.iter_mut().for_each(|group| group.layers = layers);
        let cross = CrossPlan {
            memory: d,
            module: "encoder_attn",
            qkv: BART.qkv,
            out: BART.out,
            norm: "encoder_attn_layer_norm",
            gates: ["", ""],
        };
        Ok(Self {
            norms: Norms::After,
            act: activation(text, "activation_function", "gelu")?,
            learned: Some(Learned { name: "embed_positions", first: 2 }),
            embed_norm: Some("layernorm_embedding"),
            ..plan.with_memory(cross)
        })
    }
}

impl EncoderPlan {
    /// The encoder of `BartConfig`.
    pub fn bart(text: &Fields<'_>) -> Result<Self> {
        let (d, heads) = (text.size("d_model", 1024)?, text.size("encoder_attention_heads", 16)?);
        let layers = text.or("encoder_layers", 12)?;
        if !d.is_multiple_of(heads) || layers > 1 << 16 {
            let what = format!("expected a multiple of encoder_attention_heads {heads}, found {d}");
            return Err(text.bad("d_model", what));
        }
        Ok(Self {
            vocab: text.size("vocab_size", 50_265)?,
            positions: text.size("max_position_embeddings", 1024)?,
            first: 2,
            embed_scale: 1.0,
            d,
            mlp: text.size("encoder_ffn_dim", 4096)?,
            layers,
            heads,
            eps: 1e-5,
            act: activation(text, "activation_function", "gelu")?,
            cross: None,
            names: EncoderNames {
                positions: "embed_positions",
                embed_norm: "layernorm_embedding",
                layers: "layers",
                attention: "self_attn",
                qkv: BART.qkv,
                out: BART.out,
                norm: BART.norm1,
                mlp: ["fc1", "fc2"],
                mlp_norm: BART.norm2,
                ..BERT_NAMES
            },
        })
    }
}
