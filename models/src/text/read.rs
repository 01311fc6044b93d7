//! Plans of decoders that differ little from those of [`TextPlan`]'s own file, and what several of them read alike.

use ocelli_engine::Result;
use ocelli_engine::kv::{Keep, KvGroup, KvLayout};
use ocelli_kernels::ops::{Activation, NormKind, RopeStyle};

use super::plan::{FULL, SLIDING, Sizes};
use super::{LayerPlan, Norms, TextPlan};
use crate::fields::Fields;
use crate::layers::{RopeConfig, RopeKind};

/// Which of `count` layers see a window alone: what `layer_types` says, or `default` by the layer's number.
pub(super) fn layer_kinds(
    text: &Fields<'_>,
    count: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    layer_kinds_of(text, count, SLIDING, default)
}

/// Which of `count` layers are of this kind, and do not see everything.
pub(super) fn layer_kinds_of(
    text: &Fields<'_>,
    count: usize,
    known: &str,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let Some(kinds) = text.get::<Vec<String>>("layer_types")? else {
        return Ok((0..count).map(default).collect());
    };
    if kinds.len() != count {
        return Err(text.bad("layer_types", format!("expected {count} entries, found {}", kinds.len())));
    }
    let kind = |kind: &String| match kind.as_str() {
        FULL => Ok(false),
        kind if kind == known => Ok(true),
        other => Err(text.bad("layer_types", format!("expected {FULL} or {known}, found {other}"))),
    };
    kinds.iter().map(kind).collect()
}

impl TextPlan {
    /// Puts the layers that `slides` marks in a group of the cache that keeps a window; their rotation is `rope`.
    pub(super) fn split(&mut self, slides: &[bool], window: usize, rope: usize) {
        self.split_by(slides, Keep::Window(window), rope);
    }

    /// The same with a group that keeps as it is told.
    pub(super) fn split_by(&mut self, slides: &[bool], keep: Keep, rope: usize) {
        let Some(&all) = self.kv.0.first() else { return };
        let sliding = slides.iter().filter(|slides| **slides).count();
        let full = KvGroup { layers: slides.len() - sliding, ..all };
        let groups = [full, KvGroup { layers: sliding, keep, ..all }];
        // A group without layers is none.
        let numbers = [0, usize::from(full.layers > 0)];
        let mut next = [0, 0];
        for (layer, &slides) in self.layers.iter_mut().zip(slides) {
            let kind = usize::from(slides);
            *layer =
                LayerPlan { rope: if slides { rope } else { 0 }, kv: (numbers[kind], next[kind]), ..*layer };
            next[kind] += 1;
        }
        self.kv = KvLayout(groups.into_iter().filter(|group| group.layers > 0).collect());
    }

    /// `Qwen2Config` and `Qwen3Config`: the first has biases, the second norms of queries and keys.
    pub(super) fn qwen(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let newer = text.model_type(&["qwen2", "qwen3"])? == "qwen3";
        let sizes = Sizes {
            vocab: 151_936,
            d: 4096,
            mlp: 22_016,
            layers: 32,
            heads: 32,
            heads_kv: Some(32),
            head_dim: newer.then_some(128),
            positions: 32_768,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        plan.ropes = vec![RopeConfig::read(text, 10_000.0)?];
        plan.qk_norm = newer;
        if newer {
            let bias: bool = text.or("attention_bias", false)?;
            (plan.qkv_bias, plan.out_bias) = (bias, bias);
        } else {
            plan.qkv_bias = true;
        }
        let window: Option<usize> = text.get("sliding_window")?;
        let whole: usize = text.or("max_window_layers", 28)?;
        let uses: bool = text.or("use_sliding_window", false)?;
        let slides = layer_kinds(text, plan.layers.len(), |i| uses && i >= whole)?;
        match window.or(uses.then_some(4096)).filter(|window| *window > 0) {
            Some(window) if uses => plan.split(&slides, window, 0),
            _ if slides.contains(&true) => {
                let what = format!("expected {FULL} without a sliding_window, found {SLIDING}");
                return Err(text.bad("layer_types", what));
            }
            _ => {}
        }
        Ok(plan)
    }

    /// `MistralConfig`: a window in every layer, unless it is null.
    pub(super) fn mistral(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 32_000,
            d: 4096,
            mlp: 14_336,
            layers: 32,
            heads: 32,
            heads_kv: Some(8),
            positions: 131_072,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        plan.ropes = vec![RopeConfig::read(text, 10_000.0)?];
        let window = if text.states("sliding_window") { text.get("sliding_window")? } else { Some(4096) };
        if let Some(window) = window.filter(|window| *window > 0) {
            plan.split(&vec![true; plan.layers.len()], window, 0);
        }
        Ok(plan)
    }

    /// What the generations of Gemma share.
    fn gemma_common(text: &Fields<'_>, sizes: &Sizes, tied: Option<bool>) -> Result<Self> {
        let mut plan = Self::common(text, sizes, tied)?;
        // Early files say `gelu` and mean its approximation.
        let act: Option<String> = text.any(&["hidden_activation", "hidden_act"])?;
        match act.as_deref() {
            None | Some("gelu_pytorch_tanh" | "gelu") => plan.act = Activation::GeluTanh,
            Some(other) => {
                return Err(text.bad("hidden_act", format!("expected gelu_pytorch_tanh, found {other}")));
            }
        }
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        plan.norm_offset = 1.0;
        plan.embed_scale = (plan.d as f32).sqrt();
        plan.ropes = vec![RopeConfig::read(text, 10_000.0)?];
        Ok(plan)
    }

    /// `GemmaConfig`.
    pub(super) fn gemma(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 256_000,
            d: 3072,
            mlp: 24_576,
            layers: 28,
            heads: 16,
            heads_kv: Some(16),
            head_dim: Some(256),
            positions: 8192,
            tied: true,
        };
        Self::gemma_common(text, &sizes, tied)
    }

    /// `Gemma2Config`: norms around, a window in every other layer, capped scores and logits.
    pub(super) fn gemma2(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 256_000,
            d: 2304,
            mlp: 9216,
            layers: 26,
            heads: 8,
            heads_kv: Some(4),
            head_dim: Some(256),
            positions: 8192,
            tied: true,
        };
        let mut plan = Self::gemma_common(text, &sizes, tied)?;
        plan.norms = Norms::Around;
        plan.scale = 1.0 / text.or("query_pre_attn_scalar", 256.0f32)?.sqrt();
        let cap = |key: &str, usual: f32| -> Result<f32> {
            let cap = if text.states(key) { text.get(key)?.unwrap_or(0.0) } else { usual };
            if cap < 0.0 {
                Err(text.bad(key, format!("expected a positive number, found {cap}")))
            } else {
                Ok(cap)
            }
        };
        plan.softcap = cap("attn_logit_softcapping", 50.0)?;
        plan.logit_softcap = cap("final_logit_softcapping", 30.0)?;
        let window = text.size("sliding_window", 4096)?;
        let slides = layer_kinds(text, plan.layers.len(), |i| i.is_multiple_of(2))?;
        text.inert(&["cache_implementation"]);
        plan.split(&slides, window, 0);
        Ok(plan)
    }

    /// `Cohere2Config`: one norm for attention and MLP, scaled logits, windows in most layers, and in those alone a rotation that turns
    /// neighbours together.
    pub(super) fn cohere2(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 256_000,
            d: 8192,
            mlp: 22_528,
            layers: 40,
            heads: 64,
            positions: 8192,
            tied: true,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        text.unset("use_qk_norm")?;
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        (plan.norms, plan.norm, plan.rope_style) = (Norms::Shared, NormKind::Layer, RopeStyle::Interleaved);
        plan.norm_eps = text.or("layer_norm_eps", 1e-5)?;
        plan.logit_scale = text.or("logit_scale", 0.0625)?;
        let pattern: usize = text.or("sliding_window_pattern", 4)?;
        let slides = layer_kinds(text, plan.layers.len(), |i| !(i + 1).is_multiple_of(pattern.max(1)))?;
        plan.split(&slides, text.size("sliding_window", 4096)?, 1);
        let rope = RopeConfig::read(text, 10_000.0)?;
        plan.ropes = vec![RopeConfig { kind: RopeKind::Still, ..rope.clone() }, rope];
        Ok(plan)
    }
}
