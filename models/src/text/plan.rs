//! Decoders as plans: what differs between them is read from `text_config` into one description.

use ocelli_engine::Result;
use ocelli_engine::kv::{Blocks, Keep, KvGroup, KvLayout};
use ocelli_engine::vlm::ModelInfo;
use ocelli_kernels::ops::{Activation, NormKind, RopeStyle};

use super::read::layer_kinds;
use super::{CrossPlan, HeadPlan};
use crate::fields::Fields;
use crate::layers::{ExpertsPlan, RopeConfig, RopeKind};

/// Where the norms of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the MLP.
    Before,
    /// Before and after each.
    Around,
    /// One before both: attention and MLP take the same rows, and their results are added together.
    Shared,
    /// After each, of the sum; none after the last layer.
    After,
}

/// How the tokens of a layer mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Each sees those before it.
    Attention,
    /// Each sees the memory that it reaches, of [`TextPlan::cross`]; what it adds has factors.
    Cross,
    /// A short convolution between gates, of [`TextPlan::conv`].
    ShortConv,
    /// The gated delta rule after a short convolution, of [`TextPlan::delta`].
    Delta {
        /// Group of the KV cache that has the rule's state, and the layer's number in it.
        state: (usize, usize),
    },
}

/// Where the keys and values of a layer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Projections of its own for each.
    Own,
    /// One projection: keys are values too, before they are normalized and turned.
    AlsoValues,
    /// An earlier layer wrote them, whose place in the cache [`LayerPlan::kv`] is.
    Earlier,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// How its tokens mix.
    pub mix: Mix,
    /// Number of its rotation in [`TextPlan::ropes`].
    pub rope: usize,
    /// Group of the KV cache, and the layer's number in it; of a convolution those of its state.
    pub kv: (usize, usize),
    /// The same of the memory that its tokens see after those before them, if they do.
    pub cross: Option<(usize, usize)>,
    /// Its key heads.
    pub heads_kv: usize,
    /// Elements of its heads.
    pub head_dim: usize,
    /// Where its keys and values come from.
    pub keys: Keys,
    /// Features between the layers of its MLP.
    pub mlp: usize,
    /// Whether its MLP is that of [`TextPlan::experts`].
    pub experts: bool,
}

/// Short convolutions of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvPlan {
    /// Tokens that a convolution spans.
    pub taps: usize,
    /// Whether convolution and projections have biases.
    pub bias: bool,
}

/// What a decoder's layers take of a token beside what the layers before gave: of a second table of embeddings, and of the first
/// layer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputsPlan {
    /// Features of a token in each layer.
    pub d: usize,
    /// Token whose row stands for features of pictures.
    pub pad: u32,
}

/// Layers of a decoder that follow the gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaPlan {
    /// Heads of queries and keys.
    pub heads_k: usize,
    /// Heads of values, a multiple of those.
    pub heads_v: usize,
    /// Elements of a query or key.
    pub d_k: usize,
    /// Elements of a value.
    pub d_v: usize,
    /// Tokens that the convolution before spans.
    pub taps: usize,
}

impl DeltaPlan {
    /// Columns of queries, keys and values.
    #[must_use]
    pub const fn channels(&self) -> usize {
        2 * self.heads_k * self.d_k + self.width()
    }

    /// Columns of values.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.heads_v * self.d_v
    }
}

/// Factors of queries by their positions: `1 + scale * ln(1 + floor((position + 1) / floor))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemperPlan {
    /// Positions that have the same factor.
    pub floor: usize,
    /// How much it grows.
    pub scale: f32,
}

/// Names of modules in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Token embeddings.
    pub embed: &'static str,
    /// The layers, without their numbers.
    pub layers: &'static str,
    /// Norm after the last layer.
    pub norm: &'static str,
    /// Norm of a layer's input.
    pub norm1: &'static str,
    /// Norm before the MLP, where norms are [`Norms::Before`].
    pub norm2: &'static str,
    /// Norms after attention, before the MLP and after it, where norms are [`Norms::Around`].
    pub around: [&'static str; 3],
    /// The MLP.
    pub mlp: &'static str,
    /// Its gate, up and down projections.
    pub projections: [&'static str; 3],
    /// Norms of queries and keys.
    pub qk_norms: [&'static str; 2],
    /// Attention in a layer.
    pub attention: &'static str,
    /// Its query, key and value projections.
    pub qkv: [&'static str; 3],
    /// Its output projection.
    pub out: &'static str,
}

/// Names as Llama and most others have them.
pub const LLAMA_NAMES: Names = Names {
    embed: "embed_tokens",
    layers: "layers",
    norm: "norm",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    around: ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"],
    mlp: "mlp",
    projections: ["gate_proj", "up_proj", "down_proj"],
    qk_norms: ["q_norm", "k_norm"],
    attention: "self_attn",
    qkv: ["q_proj", "k_proj", "v_proj"],
    out: "o_proj",
};

/// A table of position embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Its name.
    pub name: &'static str,
    /// Row of position 0; as many rows as positions follow.
    pub first: usize,
}

/// A decoder.
#[derive(Clone, Debug)]
pub struct TextPlan {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Features of a token.
    pub d: usize,
    /// Features between the layers of an MLP, where layers say nothing else.
    pub mlp: usize,
    /// Query heads.
    pub heads_q: usize,
    /// Key heads.
    pub heads_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Most tokens of a sequence.
    pub max_positions: usize,
    /// Activation of the gate.
    pub act: Activation,
    /// Where norms are.
    pub norms: Norms,
    /// Kind of the norms.
    pub norm: NormKind,
    /// Whether they have a shift.
    pub norm_bias: bool,
    /// Added to the stored weights of norms.
    pub norm_offset: f32,
    /// Added to mean squares.
    pub norm_eps: f32,
    /// Whether queries and keys are normalized.
    pub qk_norm: bool,
    /// Whether they are, without weights, in the layers that turn them.
    pub qk_bare: bool,
    /// Factors of queries in the layers that do not turn them, if there are such.
    pub temper: Option<TemperPlan>,
    /// Whether values are normalized, without weights.
    pub value_norm: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has one.
    pub out_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether the MLP has a gate; if not, [`Names::projections`] has no name for it.
    pub mlp_gated: bool,
    /// Attention to memory, where layers have it.
    pub cross: Option<CrossPlan>,
    /// Whether its queries and keys are normalized.
    pub cross_qk_norm: bool,
    /// Embeddings of positions, of decoders that add such.
    pub learned: Option<Learned>,
    /// Norm of the embeddings, if there is one.
    pub embed_norm: Option<&'static str>,
    /// What makes logits.
    pub head: HeadPlan,
    /// Factor of attention scores.
    pub scale: f32,
    /// Bounds attention scores smoothly; 0: not at all.
    pub softcap: f32,
    /// Which elements of a head a rotation turns together.
    pub rope_style: RopeStyle,
    /// Factor of logits.
    pub logit_scale: f32,
    /// Bounds logits smoothly; 0: not at all.
    pub logit_softcap: f32,
    /// Factor of token embeddings.
    pub embed_scale: f32,
    /// Factor of what attention and MLP add; where norms are [`Norms::Before`].
    pub residual: f32,
    /// Rows of the embedding beyond those that logits are given for.
    pub embed_more: usize,
    /// Tokens that mark places of features, and the token as which they are read where none come, as in answers.
    pub placeholders: Option<(Vec<u32>, u32)>,
    /// Whether the head is the embedding where the file has none; if it need not, an absent head is an error.
    pub tied: bool,
    /// Experts of the layers that have them.
    pub experts: Option<ExpertsPlan>,
    /// Whether layers with experts have an MLP beside them, each with norms of its own; where norms are [`Norms::Around`].
    pub experts_beside: bool,
    /// What layers take beside, where norms are [`Norms::Around`].
    pub inputs: Option<InputsPlan>,
    /// Whether the result of a layer has a factor in the file; where norms are [`Norms::Around`].
    pub layer_factor: bool,
    /// Rotations.
    pub ropes: Vec<RopeConfig>,
    /// Short convolutions, where layers have them.
    pub conv: Option<ConvPlan>,
    /// The gated delta rule, where layers follow it.
    pub delta: Option<DeltaPlan>,
    /// Whether each query head has a gate of its result beside it.
    pub output_gate: bool,
    /// Names in the file.
    pub names: Names,
    /// The layers.
    pub layers: Vec<LayerPlan>,
    /// What the cache keeps.
    pub kv: KvLayout,
}

/// Values of `text_config.model_type` that [`TextPlan::read`] knows.
pub const TEXT_TYPES: &[&str] = &[
    "llama",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen2",
    "qwen3",
    "qwen3_vl_text",
    "qwen3_vl_moe_text",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "cohere2",
    "glm4v_text",
    "glm_ocr_text",
    "lfm2",
    "paddleocr_vl_text",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "llama4_text",
    "opt",
    "deepseek_ocr2_text",
    "granite",
    "granite4_vision_text",
];

impl TextPlan {
    /// Reads `text_config`. `tied` is what the outer configuration says of head and embedding. `types` are the `model_type`s that the
    /// family takes, the first of which holds where none is stated.
    pub fn read(text: &Fields<'_>, types: &[&'static str], tied: Option<bool>) -> Result<Self> {
        match text.model_type(types)? {
            "cohere2" => Self::cohere2(text, tied),
            "gemma" => Self::gemma(text, tied),
            "gemma2" => Self::gemma2(text, tied),
            "gemma3_text" => Self::gemma3(text, tied),
            "gemma4_text" => Self::gemma4(text, tied),
            "glm4v_text" | "glm4v" => Self::glm4v(text, tied),
            "granite" | "granite4_vision_text" => Self::granite(text, tied),
            "glm_ocr_text" | "glm_ocr" => Self::glm_ocr(text, tied),
            "lfm2" => Self::lfm2(text, tied),
            "qwen3_5_text" => Self::qwen3_5(text, tied),
            "qwen3_5_moe_text" => Self::qwen3_5_moe(text, tied),
            "llama4_text" => Self::llama4(text, tied),
            "mistral" => Self::mistral(text, tied),
            "deepseek_ocr2_text" => Self::deepseek_ocr2(text, tied),
            "opt" => Self::opt(text, tied),
            "qwen2" | "qwen3" => Self::qwen(text, tied),
            "qwen2_vl_text" | "qwen2_vl" | "qwen2_5_vl_text" | "qwen2_5_vl" => Self::qwen2(text, tied),
            "qwen3_vl_text" => Self::qwen3_vl(text, tied),
            "qwen3_vl_moe_text" => Self::qwen3_vl_moe(text, tied),
            "paddleocr_vl_text" | "paddleocr_vl" => Self::paddle_ocr(text, tied),
            _ => Self::llama(text, tied),
        }
    }

    /// What most decoders have in common: RMS norms before, a gated MLP, one rotation, every key kept.
    pub(super) fn common(text: &Fields<'_>, sizes: &Sizes, tied: Option<bool>) -> Result<Self> {
        let d = text.size("hidden_size", sizes.d)?;
        let heads_q = text.size("num_attention_heads", sizes.heads)?;
        let heads_kv = text.get("num_key_value_heads")?.unwrap_or(sizes.heads_kv.unwrap_or(heads_q));
        let head_dim = text.get("head_dim")?.or(sizes.head_dim).unwrap_or(d / heads_q);
        if heads_kv == 0 || !heads_q.is_multiple_of(heads_kv) || head_dim == 0 || !head_dim.is_multiple_of(2)
        {
            return Err(text.bad(
                "num_key_value_heads",
                format!(
                    "expected num_attention_heads a multiple of num_key_value_heads and an even head_dim, found \
                     {heads_q}, {heads_kv} and {head_dim}"
                ),
            ));
        }
        let count: usize = text.or("num_hidden_layers", sizes.layers)?;
        // More layers than tensors could have names; the first absent one is told when weights are loaded.
        if count > 1 << 16 {
            return Err(
                text.bad("num_hidden_layers", format!("expected at most 65536 layers, found {count}"))
            );
        }
        let own: Option<bool> = text.get("tie_word_embeddings")?;
        let mlp = text.size("intermediate_size", sizes.mlp)?;
        let group =
            KvGroup { layers: count, heads: heads_kv, head_dim, keep: Keep::All, blocks: Blocks::Whole };
        Ok(Self {
            vocab: text.size("vocab_size", sizes.vocab)?,
            d,
            mlp,
            heads_q,
            heads_kv,
            head_dim,
            max_positions: text.size("max_position_embeddings", sizes.positions)?,
            act: Activation::Silu,
            norms: Norms::Before,
            norm: NormKind::Rms,
            norm_bias: false,
            norm_offset: 0.0,
            norm_eps: text.or("rms_norm_eps", 1e-6)?,
            qk_norm: false,
            qk_bare: false,
            temper: None,
            value_norm: false,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            mlp_gated: true,
            cross: None,
            cross_qk_norm: false,
            learned: None,
            embed_norm: None,
            head: HeadPlan::Plain,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: 0.0,
            rope_style: RopeStyle::Half,
            logit_scale: 1.0,
            logit_softcap: 0.0,
            embed_scale: 1.0,
            residual: 1.0,
            embed_more: 0,
            placeholders: None,
            tied: tied.or(own).unwrap_or(sizes.tied),
            experts: None,
            experts_beside: false,
            inputs: None,
            layer_factor: false,
            ropes: Vec::new(),
            conv: None,
            delta: None,
            output_gate: false,
            names: LLAMA_NAMES,
            layers: (0..count)
                .map(|layer| LayerPlan {
                    mix: Mix::Attention,
                    rope: 0,
                    kv: (0, layer),
                    cross: None,
                    heads_kv,
                    head_dim,
                    keys: Keys::Own,
                    mlp,
                    experts: false,
                })
                .collect(),
            kv: KvLayout(vec![group]),
        })
    }

    /// `LlamaConfig`.
    fn llama(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 32_000,
            d: 4096,
            mlp: 11_008,
            layers: 32,
            heads: 32,
            positions: 2048,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        plan.mlp_bias = text.or("mlp_bias", false)?;
        plan.ropes = vec![RopeConfig::read(text, 10_000.0)?];
        // Of configurations written before the class knew them, and of its sister classes.
        text.inert(&["is_llama_config", "pixel_shuffle_factor", "use_resampler", "max_window_layers"]);
        text.unset("sliding_window")?;
        text.unset("qk_layer_norms")?;
        text.unset("rope_interleaved")?;
        Ok(plan)
    }

    /// The text parts of `Qwen2VLConfig` and `Qwen2_5_VLConfig`, whose rotation has three axes.
    fn qwen2(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 152_064,
            d: 8192,
            mlp: 29_568,
            layers: 80,
            heads: 64,
            heads_kv: Some(8),
            positions: 32_768,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        plan.qkv_bias = true;
        plan.norm_eps = text.or("rms_norm_eps", 1e-5)?;
        plan.ropes = vec![RopeConfig::read(text, 1_000_000.0)?];
        text.unset("use_sliding_window")?;
        text.inert(&["sliding_window", "max_window_layers"]);
        full_layers_only(text)?;
        Ok(plan)
    }

    /// `Gemma3TextConfig`: norms around, two rotations, windows between layers that see everything.
    fn gemma3(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 262_208,
            d: 2304,
            mlp: 9216,
            layers: 26,
            heads: 8,
            heads_kv: Some(4),
            head_dim: Some(256),
            positions: 131_072,
            tied: true,
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        for key in ["hidden_activation", "hidden_act"] {
            text.only(key, "gelu_pytorch_tanh")?;
        }
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        (plan.act, plan.norms, plan.norm_offset, plan.qk_norm) =
            (Activation::GeluTanh, Norms::Around, 1.0, true);
        plan.scale = 1.0 / text.or("query_pre_attn_scalar", 256.0f32)?.sqrt();
        plan.embed_scale = (plan.d as f32).sqrt();
        for key in ["attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"] {
            text.unset(key)?;
        }
        let window = text.size("sliding_window", 4096)?;
        let pattern =
            text.any(&["_sliding_window_pattern", "sliding_window_pattern"])?.unwrap_or(6usize).max(1);
        let slides = layer_kinds(text, plan.layers.len(), |i| !(i + 1).is_multiple_of(pattern))?;
        plan.split(&slides, window, 1);
        let new = text.at("rope_parameters");
        plan.ropes = if new.has(FULL) {
            vec![RopeConfig::of(&new.at(FULL), 1e6)?, RopeConfig::of(&new.at(SLIDING), 1e4)?]
        } else {
            let local = RopeConfig { theta: text.or("rope_local_base_freq", 1e4)?, ..RopeConfig::default() };
            vec![RopeConfig::read(text, 1e6)?, local]
        };
        text.inert(&["rope_theta", "rope_local_base_freq", "rope_scaling"]);
        Ok(plan)
    }

    /// Facts about a model of `family` with this decoder.
    #[must_use]
    pub fn info(&self, family: &'static str) -> ModelInfo {
        ModelInfo {
            family,
            vocab: self.vocab,
            embedded: self.vocab + self.embed_more,
            max_positions: self.max_positions,
            d_model: self.d,
            layers: self.layers.len(),
            kv: self.kv.clone(),
            axes: self.axes(),
        }
    }

    /// Whether a layer turns queries and keys.
    #[must_use]
    pub fn turns(&self, layer: &LayerPlan) -> bool {
        self.ropes.get(layer.rope).is_some_and(|rope| rope.kind != RopeKind::Still)
    }

    /// Axes of positions.
    #[must_use]
    pub fn axes(&self) -> usize {
        self.ropes.iter().map(|rope| rope.sections.len()).max().unwrap_or(1).max(1)
    }
}

pub(super) const FULL: &str = "full_attention";
pub(super) const SLIDING: &str = "sliding_attention";

/// Errors where `layer_types` names other layers than ones that see everything.
pub(super) fn full_layers_only(text: &Fields<'_>) -> Result<()> {
    let kinds: Vec<String> = text.or("layer_types", Vec::new())?;
    match kinds.iter().find(|kind| *kind != FULL) {
        Some(kind) => Err(text.bad("layer_types", format!("expected {FULL}, found {kind}"))),
        None => Ok(()),
    }
}

/// Sizes that a reference class takes where the configuration says nothing.
#[derive(Default)]
pub(super) struct Sizes {
    pub vocab: usize,
    pub d: usize,
    pub mlp: usize,
    pub layers: usize,
    pub heads: usize,
    pub heads_kv: Option<usize>,
    pub head_dim: Option<usize>,
    pub positions: usize,
    pub tied: bool,
}
