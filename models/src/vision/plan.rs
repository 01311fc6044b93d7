//! Towers as plans: what differs between them is read from `vision_config` into one description.

use ocelli_engine::Result;
use ocelli_kernels::ops::{Activation, NormKind};

use super::Between;
use crate::fields::Fields;

/// How patches know where they are.
#[derive(Clone, Debug, PartialEq)]
pub enum Places {
    /// A table with a row for each patch of a picture of `image_size`; other sizes are refused.
    Table,
    /// A table for pictures of `image_size`; patches of smaller ones take the row of the bucket that they fall into.
    Buckets,
    /// A rotation of queries and keys, half of the pairs by the row and half by the column, with the same frequencies.
    Rotation,
    /// A table for pictures of `image_size`, resized to the grid of each picture, bilinear and antialiased.
    Resized,
    /// The same with one row of frequencies, of which rows take every other one and columns those between.
    Turns {
        /// Base of the frequencies.
        theta: f32,
    },
    /// The rotation, and a table for pictures of `image_size` that is interpolated for others.
    RotationAndTable(Between),
    /// Two tables of so many rows, whose rows for a patch's column and for its row are added; and a rotation of each half of a head by
    /// itself, the first by the column and the second by the row.
    Crossed {
        /// Columns and rows that the tables are for.
        places: usize,
        /// Base of the frequencies.
        theta: f32,
    },
    /// A table for pictures of `image_size`, whose last row is that of the row before the patches; and a rotation of neighbouring elements,
    /// half of the pairs by the column and half by the row, both counted from 1. The row before the patches is not turned.
    Counted {
        /// Base of the frequencies.
        theta: f32,
    },
}

impl Places {
    /// Whether queries and keys are turned.
    #[must_use]
    pub const fn rotate(&self) -> bool {
        !matches!(self, Self::Table | Self::Buckets | Self::Resized)
    }
}

/// What a norm of queries and keys runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// All heads of a patch.
    Rows,
    /// Each head alone, where it is turned.
    Heads,
}

/// Names and kinds of the projections of an MLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(act(up x))`.
    Plain {
        /// Name of the first layer.
        up: &'static str,
        /// Name of the second.
        down: &'static str,
    },
    /// `down(act(gate x) * up x)`, by the usual names.
    Gated {
        /// Name of the module.
        module: &'static str,
    },
}

/// Names of modules in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The patch embedding.
    pub patch: &'static str,
    /// The layers, without their numbers.
    pub layers: &'static str,
    /// Norm before attention.
    pub norm1: &'static str,
    /// Norm before the MLP.
    pub norm2: &'static str,
    /// Query, key and value projections, or their rows in one matrix.
    pub qkv: &'static [&'static str],
    /// Output projection of attention.
    pub out: &'static str,
    /// Norms of what attention and MLP give, if there are such.
    pub after: Option<[&'static str; 2]>,
    /// Norm of the patches before the first layer, if there is one.
    pub pre_norm: Option<&'static str>,
    /// Norm after the last layer, if its result is used or shown.
    pub post_norm: Option<&'static str>,
    /// The row before the patches.
    pub class: &'static str,
    /// The position table.
    pub positions: &'static str,
    /// Whether row and table are stored as those of a batch of one.
    pub batched: bool,
}

/// Names as CLIP and SigLIP have them.
pub const CLIP_NAMES: Names = Names {
    patch: "embeddings.patch_embedding",
    layers: "encoder.layers",
    norm1: "layer_norm1",
    norm2: "layer_norm2",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    after: None,
    pre_norm: None,
    post_norm: Some("post_layernorm"),
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    batched: false,
};

/// A tower.
#[derive(Clone, Debug)]
pub struct VitPlan {
    /// Features of a patch.
    pub d: usize,
    /// Features between the layers of an MLP.
    pub mlp: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Key heads, if they are fewer.
    pub heads_kv: Option<usize>,
    /// Side of the square pictures that tables are for, in pixels.
    pub image: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Frames that a patch covers; a picture is the same frame so many times.
    pub frames: usize,
    /// Whether the patch embedding has a bias.
    pub patch_bias: bool,
    /// Whether the filters are a matrix of `[row, column, channel]`, channels fastest, and not of `[channel, row, column]`.
    pub channels_last: bool,
    /// Whether a row of its own comes before the patches of a picture.
    pub class_row: bool,
    /// How patches know where they are.
    pub places: Places,
    /// Kind of the norms.
    pub norm: NormKind,
    /// Added to variances or mean squares.
    pub norm_eps: f32,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has one.
    pub out_bias: bool,
    /// Whether those of the MLP have.
    pub mlp_bias: bool,
    /// Which queries and keys are normalized together, if any.
    pub qk_norm: Option<Together>,
    /// Whether values are normalized, without weights.
    pub value_norm: bool,
    /// Factor of attention scores, if it is not that of the size of heads.
    pub attention_scale: Option<f32>,
    /// Whether linear layers are wrapped in modules, as their `linear`; and whether these have bounds then.
    pub wrapped: Option<bool>,
    /// Names of the factors of what attention and MLP add, if there are any.
    pub scales: Option<[&'static str; 2]>,
    /// Activation of the MLP.
    pub act: Activation,
    /// Kind of the MLP.
    pub mlp_kind: Mlp,
    /// Layer after which windows of 2 x 2 patches become one row, if there is one; patches come in the order of windows then.
    pub merges: Option<usize>,
    /// Layers that see the whole picture; the others see windows. `None`: all do.
    pub full: Option<Vec<usize>>,
    /// Layers that what follows needs: the result is that of the last of them, the rest runs for observers alone.
    pub used: usize,
    /// Whether the norm after the last layer is part of the result.
    pub normed: bool,
    /// Whether it is part of what observers see, if not.
    pub shown_normed: bool,
    /// Whether patches get their places after the norm before the first layer.
    pub norm_first: bool,
    /// Whether the result is what the reference calls the tower's, and not what a connector makes of it.
    pub whole: bool,
    /// Names in the file.
    pub names: Names,
}

/// The activation of a name of transformers' `ACT2FN`.
pub fn activation(fields: &Fields<'_>, key: &str, default: &str) -> Result<Activation> {
    let name: String = fields.or(key, default.to_owned())?;
    match name.as_str() {
        "gelu" => Ok(Activation::GeluErf),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "silu" | "swish" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        other => Err(fields
            .bad(key, format!("expected gelu, gelu_pytorch_tanh, quick_gelu, silu or relu, found {other}"))),
    }
}

/// The side of a square, which may be stated as a number or as two equal ones.
pub(super) fn side(fields: &Fields<'_>, key: &str, default: usize) -> Result<usize> {
    match fields.get::<serde_json::Value>(key)? {
        Some(serde_json::Value::Array(sides)) => {
            match sides.iter().map(|side| side.as_u64()).collect::<Vec<_>>()[..] {
                [Some(height @ 1..=0x4000_0000), Some(width)] if height == width => Ok(height as usize),
                _ => Err(fields.bad(key, format!("expected two equal sizes, found {sides:?}"))),
            }
        }
        _ => fields.size(key, default),
    }
}

impl VitPlan {
    /// Reads the fields that CLIP's and SigLIP's towers share; `default` has what the reference class takes without them.
    pub(super) fn common(vision: &Fields<'_>, default: Self, act: &str) -> Result<Self> {
        vision.only("num_channels", 3)?;
        let layers = vision.or("num_hidden_layers", default.layers)?;
        let plan = Self {
            d: vision.size("hidden_size", default.d)?,
            mlp: vision.size("intermediate_size", default.mlp)?,
            layers,
            used: layers,
            heads: vision.size("num_attention_heads", default.heads)?,
            image: vision.size("image_size", default.image)?,
            patch: vision.size("patch_size", default.patch)?,
            norm_eps: vision.or("layer_norm_eps", default.norm_eps)?,
            act: activation(vision, "hidden_act", act)?,
            ..default
        };
        plan.check(vision)
    }

    /// `Idefics3VisionConfig` and `SmolVLMVisionConfig`.
    pub fn idefics(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&[
            "idefics3_vision",
            "smolvlm_vision",
            "idefics3",
            "smolvlm",
            "siglip_vision_model",
        ])?;
        vision.inert(&["size", "max_image_size", "use_base_siglip"]);
        let default = Self {
            d: 1152,
            mlp: 3072,
            layers: 12,
            heads: 16,
            image: 224,
            patch: 32,
            places: Places::Buckets,
            ..Self::siglip_base()
        };
        Self::common(vision, default, "gelu_pytorch_tanh")
    }

    /// `SiglipVisionConfig`, for models that take the patches and not the pooled head.
    pub fn siglip(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["siglip_vision_model"])?;
        vision.unset("vision_use_head")?;
        Self::common(vision, Self::siglip_base(), "gelu_pytorch_tanh")
    }

    /// `SiglipVisionConfig`, for models that take the pooled head.
    pub fn siglip_pooled(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["siglip_vision_model"])?;
        vision.only("vision_use_head", true)?;
        Self::common(vision, Self::siglip_base(), "gelu_pytorch_tanh")
    }

    /// `Siglip2VisionConfig`, for models that take the patches of pictures of any size.
    pub fn siglip2(vision: &Fields<'_>) -> Result<Self> {
        vision.unset("vision_use_head")?;
        Self::siglip2_any(vision)
    }

    /// The same for models that take the pooled head.
    pub fn siglip2_pooled(vision: &Fields<'_>) -> Result<Self> {
        vision.only("vision_use_head", true)?;
        Self::siglip2_any(vision)
    }

    fn siglip2_any(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["siglip2_vision_model"])?;
        let patches = vision.size("num_patches", 256)?;
        let side = patches.isqrt();
        if side * side != patches {
            return Err(vision.bad("num_patches", format!("expected a square number, found {patches}")));
        }
        let default = Self { places: Places::Resized, channels_last: true, ..Self::siglip_base() };
        let plan = Self::common(vision, default, "gelu_pytorch_tanh")?;
        Self { image: side * plan.patch, ..plan }.check(vision)
    }

    /// `MiniCPMV4_6VisionConfig`; `merges` is the layer that the merger follows.
    pub fn minicpmv(vision: &Fields<'_>, merges: usize) -> Result<Self> {
        vision.model_type(&["minicpmv4_6_vision"])?;
        vision.inert(&["insert_layer_id"]);
        vision.only("window_kernel_size", vec![2, 2])?;
        let default = Self { places: Places::Buckets, merges: Some(merges), ..Self::siglip_base() };
        let plan = Self::common(vision, default, "gelu_pytorch_tanh")?;
        if merges >= plan.layers {
            return Err(vision.bad(
                "num_hidden_layers",
                format!("expected more than insert_layer_id {merges}, found {}", plan.layers),
            ));
        }
        Ok(plan)
    }

    /// The layers of `CLIPTextConfig`, `SiglipTextConfig` and their like, which are those of a tower without pictures; `default` has
    /// what the reference class takes where the configuration says nothing.
    pub fn text(text: &Fields<'_>, default: Self, act: &str) -> Result<Self> {
        let names = Names { post_norm: Some("final_layer_norm"), ..CLIP_NAMES };
        let layers = text.or("num_hidden_layers", default.layers)?;
        let plan = Self {
            d: text.size("hidden_size", default.d)?,
            mlp: text.size("intermediate_size", default.mlp)?,
            layers,
            used: layers,
            heads: text.size("num_attention_heads", default.heads)?,
            norm_eps: text.or("layer_norm_eps", default.norm_eps)?,
            act: activation(text, "hidden_act", act)?,
            names,
            ..default
        };
        plan.check(text)
    }

    /// `CLIPVisionConfig`.
    pub fn clip(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["clip_vision_model"])?;
        let names = Names { pre_norm: Some("pre_layrnorm"), ..CLIP_NAMES };
        let default = Self {
            patch: 32,
            patch_bias: false,
            class_row: true,
            normed: false,
            shown_normed: false,
            names,
            norm_eps: 1e-5,
            ..Self::siglip_base()
        };
        Self::common(vision, default, "quick_gelu")
    }

    /// `PixtralVisionConfig`.
    pub fn pixtral(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["pixtral"])?;
        vision.only("num_channels", 3)?;
        let rope = vision.at("rope_parameters");
        rope.only("rope_type", "axial")?;
        let theta = rope.get("rope_theta")?.or(vision.get("rope_theta")?).unwrap_or(10_000.0);
        let names = Names {
            patch: "patch_conv",
            layers: "transformer.layers",
            norm1: "attention_norm",
            norm2: "ffn_norm",
            qkv: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
            out: "attention.o_proj",
            pre_norm: Some("ln_pre"),
            post_norm: None,
            ..CLIP_NAMES
        };
        let layers = vision.or("num_hidden_layers", 24)?;
        let plan = Self {
            d: vision.size("hidden_size", 1024)?,
            mlp: vision.size("intermediate_size", 4096)?,
            layers,
            used: layers,
            heads: vision.size("num_attention_heads", 16)?,
            image: side(vision, "image_size", 1024)?,
            patch: side(vision, "patch_size", 16)?,
            patch_bias: false,
            places: Places::Turns { theta },
            norm: NormKind::Rms,
            norm_eps: 1e-5,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            act: activation(vision, "hidden_act", "gelu")?,
            mlp_kind: Mlp::Gated { module: "feed_forward" },
            normed: false,
            names,
            ..Self::siglip_base()
        };
        vision.only("head_dim", plan.d / plan.heads)?;
        plan.check(vision)
    }

    /// `InternVLVisionConfig`.
    pub fn internvl(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["internvl_vision"])?;
        vision.only("num_channels", 3)?;
        vision.only("use_mean_pooling", true)?;
        vision.only("use_absolute_position_embeddings", true)?;
        vision.inert(&[
            "use_mask_token",
            "layer_scale_init_value",
            "projection_dropout",
            "hidden_dropout_prob",
        ]);
        let norm: String = vision.or("norm_type", "layer_norm".into())?;
        let norm = match norm.as_str() {
            "layer_norm" => NormKind::Layer,
            "rms_norm" => NormKind::Rms,
            other => {
                return Err(
                    vision.bad("norm_type", format!("expected layer_norm or rms_norm, found {other}"))
                );
            }
        };
        let names = Names {
            patch: "embeddings.patch_embeddings.projection",
            layers: "encoder.layer",
            norm1: "layernorm_before",
            norm2: "layernorm_after",
            qkv: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
            out: "attention.projection_layer",
            after: None,
            pre_norm: None,
            post_norm: None,
            class: "embeddings.cls_token",
            positions: "embeddings.position_embeddings",
            batched: true,
        };
        let layers = vision.or("num_hidden_layers", 24)?;
        Self {
            d: vision.size("hidden_size", 1024)?,
            mlp: vision.size("intermediate_size", 4096)?,
            layers,
            used: layers,
            heads: vision.size("num_attention_heads", 16)?,
            image: side(vision, "image_size", 448)?,
            patch: side(vision, "patch_size", 14)?,
            class_row: true,
            norm,
            norm_eps: vision.or("layer_norm_eps", 1e-6)?,
            qkv_bias: vision.or("attention_bias", false)?,
            qk_norm: vision.or("use_qk_norm", false)?.then_some(Together::Rows),
            scales: Some(["lambda_1", "lambda_2"]),
            act: activation(vision, "hidden_act", "gelu")?,
            normed: false,
            names,
            ..Self::siglip_base()
        }
        .check(vision)
    }

    /// What `SiglipVisionConfig` takes where the configuration says nothing.
    #[must_use]
    pub fn siglip_base() -> Self {
        Self {
            d: 768,
            mlp: 3072,
            layers: 12,
            heads: 12,
            heads_kv: None,
            image: 224,
            patch: 16,
            frames: 1,
            patch_bias: true,
            channels_last: false,
            class_row: false,
            places: Places::Table,
            norm: NormKind::Layer,
            norm_eps: 1e-6,
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            qk_norm: None,
            value_norm: false,
            attention_scale: None,
            wrapped: None,
            scales: None,
            act: Activation::GeluTanh,
            mlp_kind: Mlp::Plain { up: "mlp.fc1", down: "mlp.fc2" },
            merges: None,
            full: None,
            used: 12,
            normed: true,
            shown_normed: true,
            norm_first: false,
            whole: true,
            names: CLIP_NAMES,
        }
    }

    /// What the towers of Qwen2-VL and its successors share; `default` has what the reference class takes where the file says nothing.
    fn qwen(vision: &Fields<'_>, default: Self, act: &str) -> Result<Self> {
        for key in ["in_channels", "in_chans", "num_channels"] {
            vision.only(key, 3)?;
        }
        vision.at("rope_parameters").only("rope_theta", 10_000.0)?;
        vision.at("rope_parameters").only("rope_type", "axial")?;
        let layers = vision.any(&["depth", "num_hidden_layers"])?.unwrap_or(default.layers);
        Self {
            layers,
            used: layers,
            heads: vision.any(&["num_heads", "num_attention_heads"])?.unwrap_or(default.heads),
            patch: vision.any(&["patch_size", "spatial_patch_size"])?.unwrap_or(default.patch),
            frames: vision.size("temporal_patch_size", 2)?,
            act: activation(vision, "hidden_act", act)?,
            ..default
        }
        .check(vision)
    }

    fn qwen_base() -> Self {
        let names = Names {
            patch: "patch_embed.proj",
            positions: "pos_embed.weight",
            layers: "blocks",
            norm1: "norm1",
            norm2: "norm2",
            qkv: &["attn.qkv"],
            out: "attn.proj",
            pre_norm: None,
            post_norm: None,
            ..CLIP_NAMES
        };
        Self {
            layers: 32,
            heads: 16,
            patch: 14,
            image: usize::MAX,
            patch_bias: false,
            places: Places::Rotation,
            normed: false,
            names,
            ..Self::siglip_base()
        }
    }

    /// `PaddleOCRVisionConfig`.
    pub fn paddle_ocr(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["paddleocr_vl_vision", "paddleocr_vl", "siglip_vision_model"])?;
        vision.at("rope_parameters").only("rope_theta", 10_000.0)?;
        vision.at("rope_parameters").only("rope_type", "axial")?;
        vision.only("temporal_patch_size", 1)?;
        vision.inert(&["tokens_per_second", "pad_token_id"]);
        let default = Self {
            d: 1152,
            mlp: 4304,
            layers: 27,
            heads: 16,
            image: 384,
            patch: 14,
            places: Places::RotationAndTable(Between::Linear),
            ..Self::siglip_base()
        };
        Self::common(vision, default, "gelu_pytorch_tanh")
    }

    /// `Gemma4VisionConfig`.
    pub fn gemma4(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["gemma4_vision"])?;
        vision.inert(&[
            "max_position_embeddings",
            "global_head_dim",
            "default_output_length",
            "video_seq_length",
        ]);
        vision.unset("attention_bias")?;
        let rope = vision.at("rope_parameters");
        // Earlier files call the rotation of two axes the default one.
        let kind: Option<String> = rope.get("rope_type")?;
        if let Some(kind) = kind.filter(|kind| !["axial", "default"].contains(&&**kind)) {
            return Err(rope.bad("rope_type", format!("expected axial, found {kind}")));
        }
        let places = vision.size("position_embedding_size", 10_240)?;
        let places = Places::Crossed { places, theta: rope.or("rope_theta", 100.0)? };
        let names = Names {
            patch: "patch_embedder.input_proj",
            positions: "patch_embedder.position_embedding_table",
            norm1: "input_layernorm",
            norm2: "pre_feedforward_layernorm",
            after: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
            out: "self_attn.o_proj",
            post_norm: None,
            ..CLIP_NAMES
        };
        let layers = vision.or("num_hidden_layers", 16)?;
        let heads = vision.size("num_attention_heads", 12)?;
        let heads_kv = vision.size("num_key_value_heads", 12)?;
        let plan = Self {
            d: vision.size("hidden_size", 768)?,
            mlp: vision.size("intermediate_size", 3072)?,
            layers,
            used: layers,
            heads,
            heads_kv: Some(heads_kv),
            image: usize::MAX,
            patch: vision.size("patch_size", 16)?,
            patch_bias: false,
            channels_last: true,
            places,
            norm: NormKind::Rms,
            norm_eps: vision.or("rms_norm_eps", 1e-6)?,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            qk_norm: Some(Together::Heads),
            value_norm: true,
            attention_scale: Some(1.0),
            wrapped: Some(vision.or("use_clipped_linears", false)?),
            act: activation(vision, "hidden_activation", "gelu_pytorch_tanh")?,
            mlp_kind: Mlp::Gated { module: "mlp" },
            normed: false,
            whole: false,
            names,
            ..Self::siglip_base()
        }
        .check(vision)?;
        let head_dim = vision.size("head_dim", 64)?;
        if head_dim != plan.head_dim() || !head_dim.is_multiple_of(4) {
            let what =
                format!("expected hidden_size / num_attention_heads, a multiple of 4, found {head_dim}");
            return Err(vision.bad("head_dim", what));
        }
        if !heads.is_multiple_of(heads_kv) {
            let what = format!("expected a divisor of num_attention_heads {heads}, found {heads_kv}");
            return Err(vision.bad("num_key_value_heads", what));
        }
        Ok(plan)
    }

    /// `Glm4vVisionConfig`, or `GlmOcrVisionConfig` if `ocr`.
    pub fn glm(vision: &Fields<'_>, ocr: bool) -> Result<Self> {
        vision.model_type(if ocr { &["glm_ocr_vision", "glm_ocr"] } else { &["glm4v_vision", "glm4v"] })?;
        vision.inert(&["hidden_dropout_prob"]);
        let bias = vision.or("attention_bias", ocr)?;
        let base = Self::qwen_base();
        let default = Self {
            d: vision.size("hidden_size", if ocr { 1024 } else { 1536 })?,
            layers: 24,
            heads: if ocr { 16 } else { 12 },
            image: vision.size("image_size", 336)?,
            patch_bias: true,
            norm: NormKind::Rms,
            norm_eps: vision.or("rms_norm_eps", 1e-5)?,
            qkv_bias: bias,
            out_bias: ocr && bias,
            mlp_bias: ocr && bias,
            mlp_kind: Mlp::Gated { module: "mlp" },
            normed: true,
            whole: false,
            names: Names { post_norm: Some("post_layernorm"), ..base.names.clone() },
            ..base
        };
        if ocr {
            let mlp = vision.size("intermediate_size", 4096)?;
            let default = Self { mlp, image: usize::MAX, qk_norm: Some(Together::Heads), ..default };
            return Self::qwen(vision, default, "silu");
        }
        let names = Names {
            pre_norm: Some("post_conv_layernorm"),
            positions: "embeddings.position_embedding.weight",
            ..default.names.clone()
        };
        let default = Self {
            // The widths of tower and merger are stored under each other's names.
            mlp: vision.size("out_hidden_size", 4096)?,
            places: Places::RotationAndTable(Between::Cubic),
            norm_first: true,
            names,
            ..default
        };
        Self::qwen(vision, default, "silu")
    }

    /// `Qwen2VLVisionConfig`, whose `hidden_size` is the decoder's.
    pub fn qwen2(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["qwen2_vl_vision", "qwen2_vl"])?;
        let d = vision.size("embed_dim", 1280)?;
        let default = Self {
            d,
            mlp: d.saturating_mul(vision.size("mlp_ratio", 4)?),
            norm: NormKind::Layer,
            ..Self::qwen_base()
        };
        Self::qwen(vision, default, "quick_gelu")
    }

    /// `Qwen2_5_VLVisionConfig`.
    pub fn qwen2_5(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["qwen2_5_vl_vision", "qwen2_5_vl"])?;
        vision.inert(&["image_size", "num_position_embeddings"]);
        let default = Self {
            d: vision.size("hidden_size", 3584)?,
            mlp: vision.size("intermediate_size", 3420)?,
            norm: NormKind::Rms,
            mlp_kind: Mlp::Gated { module: "mlp" },
            full: Some(vision.or("fullatt_block_indexes", vec![7, 15, 23, 31])?),
            ..Self::qwen_base()
        };
        Self::qwen(vision, default, "silu")
    }

    /// `Qwen3VLVisionConfig` and `Qwen3VLMoeVisionConfig`; `types` are the `model_type`s of the family.
    pub fn qwen3(vision: &Fields<'_>, types: &[&'static str]) -> Result<Self> {
        vision.model_type(types)?;
        let default = Self {
            d: vision.size("hidden_size", 1152)?,
            mlp: vision.size("intermediate_size", 4304)?,
            layers: 27,
            patch: 16,
            patch_bias: true,
            places: Places::RotationAndTable(Between::LinearCorners),
            mlp_kind: Mlp::Plain { up: "mlp.linear_fc1", down: "mlp.linear_fc2" },
            ..Self::qwen_base()
        };
        let mut plan = Self::qwen(vision, default, "gelu_pytorch_tanh")?;
        let table = vision.size("num_position_embeddings", 2304)?;
        let side = table.isqrt();
        if side * side != table {
            return Err(vision.bad("num_position_embeddings", format!("expected a square, found {table}")));
        }
        plan.image = side.saturating_mul(plan.patch);
        plan.check(vision)
    }

    pub(super) fn check(self, vision: &Fields<'_>) -> Result<Self> {
        if self.layers > 1 << 16 {
            return Err(vision
                .bad("num_hidden_layers", format!("expected at most 65536 layers, found {}", self.layers)));
        }
        let side = self.image / self.patch.max(1);
        if self.patch == 0 || side == 0 || self.heads == 0 || !self.d.is_multiple_of(self.heads) {
            return Err(vision.bad(
                "hidden_size",
                format!(
                    "expected image_size >= patch_size > 0 and hidden_size a multiple of num_attention_heads, found {}, {}, \
                     {} and {}",
                    self.image, self.patch, self.d, self.heads
                ),
            ));
        }
        Ok(self)
    }

    /// Patches along a side of a picture of `image_size`.
    #[must_use]
    pub fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Elements of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.d / self.heads
    }

    /// Key heads.
    #[must_use]
    pub fn heads_kv(&self) -> usize {
        self.heads_kv.unwrap_or(self.heads)
    }

    /// Rows before the patches of a picture.
    #[must_use]
    pub fn extra_rows(&self) -> usize {
        self.class_row.into()
    }

    /// Takes the result of a layer as transformers numbers hidden states: 0 is the patches, -1 the last layer.
    pub fn take_layer(&mut self, number: i64) -> Option<()> {
        let layers = i64::try_from(self.layers).ok()?;
        let used = if number < 0 { layers + 1 + number } else { number };
        self.used = usize::try_from(used).ok().filter(|used| *used <= self.layers)?;
        self.normed = false;
        Some(())
    }
}
