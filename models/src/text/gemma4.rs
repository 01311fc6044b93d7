//! The plan of Gemma 4: layers that see a window between layers that see everything, with heads of their own; layers that read the keys of
//! earlier ones; inputs of each layer; experts beside an MLP.

use ocelli_engine::Result;
use ocelli_engine::kv::{Blocks, Keep, KvGroup, KvLayout};
use ocelli_kernels::ops::Activation;

use super::plan::{FULL, InputsPlan, Keys, Norms, SLIDING, Sizes, TextPlan};
use super::read::layer_kinds;
use crate::fields::Fields;
use crate::layers::{ExpertsPlan, RopeConfig, RopeKind};

impl TextPlan {
    /// `Gemma4TextConfig`.
    pub(super) fn gemma4(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 262_144,
            d: 2304,
            mlp: 9216,
            layers: 30,
            heads: 8,
            heads_kv: Some(4),
            head_dim: Some(256),
            positions: 131_072,
            tied: true,
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_activation", "gelu_pytorch_tanh")?;
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        (plan.act, plan.norms) = (Activation::GeluTanh, Norms::Around);
        (plan.qk_norm, plan.value_norm, plan.layer_factor) = (true, true, true);
        plan.scale = 1.0;
        plan.embed_scale = (plan.d as f32).sqrt();
        plan.logit_softcap = text.or("final_logit_softcapping", 0.0)?;
        plan.read_inputs(text)?;
        plan.read_experts(text)?;
        let slides = plan.read_layers(text)?;
        plan.place_keys(text, &slides)?;
        let ropes = text.at("rope_parameters");
        let whole = RopeConfig {
            theta: 1e6,
            kind: RopeKind::Proportional,
            part: Some(0.25),
            ..RopeConfig::default()
        };
        plan.ropes = vec![
            if ropes.has(FULL) { RopeConfig::of(&ropes.at(FULL), 1e6)? } else { whole },
            RopeConfig::of(&ropes.at(SLIDING), 1e4)?,
        ];
        Ok(plan)
    }

    fn read_inputs(&mut self, text: &Fields<'_>) -> Result<()> {
        let d: usize = text.or("hidden_size_per_layer_input", 256)?;
        if d == 0 {
            text.inert(&["vocab_size_per_layer_input"]);
            return Ok(());
        }
        let vocab = text.size("vocab_size_per_layer_input", 262_144)?;
        if vocab != self.vocab {
            let what = format!("expected vocab_size {}, found {vocab}", self.vocab);
            return Err(text.bad("vocab_size_per_layer_input", what));
        }
        self.inputs = Some(InputsPlan { d, pad: text.or("pad_token_id", 0)? });
        Ok(())
    }

    fn read_experts(&mut self, text: &Fields<'_>) -> Result<()> {
        if !text.or("enable_moe_block", false)? {
            text.inert(&[
                "num_experts",
                "top_k_experts",
                "moe_intermediate_size",
                "expert_intermediate_size",
            ]);
            return Ok(());
        }
        let (experts, inner) = (text.need("num_experts")?, text.need("moe_intermediate_size")?);
        self.experts = Some(ExpertsPlan {
            top: text.need("top_k_experts")?,
            act: Activation::GeluTanh,
            router: "router.proj",
            stack: "experts.switch_glu",
            factors: Some("router.per_expert_scale"),
            transposed: Some(false),
            ..ExpertsPlan::softmax(experts, self.d, inner)
        });
        self.experts_beside = true;
        self.layers.iter_mut().for_each(|layer| layer.experts = true);
        Ok(())
    }

    /// Heads, keys and widths of layers; gives which of them see a window alone.
    fn read_layers(&mut self, text: &Fields<'_>) -> Result<Vec<bool>> {
        let count = self.layers.len();
        let mut slides = layer_kinds(text, count, |i| !(i + 1).is_multiple_of(6))?;
        // The reference has the last layer see everything, whatever the list says.
        if let Some(last) = slides.last_mut() {
            *last = false;
        }
        let own_values = !text.or("attention_k_eq_v", false)?;
        let of_full = (
            text.size("global_head_dim", 512)?,
            text.get("num_global_key_value_heads")?.filter(|_| !own_values).unwrap_or(self.heads_kv),
        );
        let shared: usize = text.or("num_kv_shared_layers", 0)?;
        let wide: bool = text.or("use_double_wide_mlp", false)?;
        if shared > 0 && shared >= count {
            let what = format!("expected less than {count} layers, found {shared}");
            return Err(text.bad("num_kv_shared_layers", what));
        }
        let each = text.has("per_layer_config").then(|| text.at("per_layer_config"));
        if let Some(key) = each.iter().flat_map(Fields::keys).find(|key| !is_layer(key, count)) {
            let what = format!("expected numbers of layers below {count}, found {key}");
            return Err(text.bad("per_layer_config", what));
        }
        for (i, (layer, &slides)) in self.layers.iter_mut().zip(&slides).enumerate() {
            match &each {
                Some(each) => {
                    let own = each.at(&i.to_string());
                    layer.head_dim = own.or("head_dim", layer.head_dim)?;
                    layer.heads_kv = own.or("num_key_value_heads", layer.heads_kv)?;
                }
                None if !slides => (layer.head_dim, layer.heads_kv) = of_full,
                None => {}
            }
            if !slides && !own_values {
                layer.keys = Keys::AlsoValues;
            }
            if i >= count - shared {
                layer.keys = Keys::Earlier;
                layer.mlp *= if wide { 2 } else { 1 };
            }
            layer.rope = usize::from(slides);
            let (heads_kv, head_dim) = (layer.heads_kv, layer.head_dim);
            if heads_kv == 0
                || !self.heads_q.is_multiple_of(heads_kv)
                || head_dim == 0
                || !head_dim.is_multiple_of(2)
            {
                let what = format!(
                    "layer {i}: expected num_attention_heads a multiple of its key heads and an even head_dim, found {}, \
                     {heads_kv} and {head_dim}",
                    self.heads_q
                );
                return Err(text.bad("per_layer_config", what));
            }
        }
        Ok(slides)
    }

    /// Groups of layers that keep the same, and the place of each layer's keys.
    fn place_keys(&mut self, text: &Fields<'_>, slides: &[bool]) -> Result<()> {
        let window = text.size("sliding_window", 512)?;
        let seen: Option<String> = text.get("use_bidirectional_attention")?;
        let ahead = match seen.as_deref() {
            None => Blocks::Nothing,
            Some("vision") => Blocks::Ahead,
            Some(other) => {
                let what = format!("expected vision or null, found {other}");
                return Err(text.bad("use_bidirectional_attention", what));
            }
        };
        let mut groups: Vec<KvGroup> = Vec::new();
        // The last layer of each kind that has keys of its own.
        let mut last = [None, None];
        for (layer, &slides) in self.layers.iter_mut().zip(slides) {
            let (keep, blocks) =
                if slides { (Keep::Window(window), ahead) } else { (Keep::All, Blocks::Nothing) };
            let kind = usize::from(slides);
            if layer.keys == Keys::Earlier {
                let (kv, shape) = last[kind].ok_or_else(|| {
                    text.bad("num_kv_shared_layers", "expected a layer of each kind with keys of its own")
                })?;
                if shape != (layer.heads_kv, layer.head_dim) {
                    let what = "expected the heads of the layer whose keys are read";
                    return Err(text.bad("per_layer_config", what));
                }
                layer.kv = kv;
                continue;
            }
            let (heads, head_dim) = (layer.heads_kv, layer.head_dim);
            let alike =
                |group: &KvGroup| (group.keep, group.heads, group.head_dim) == (keep, heads, head_dim);
            let group = groups.iter().position(alike).unwrap_or_else(|| {
                groups.push(KvGroup { layers: 0, heads, head_dim, keep, blocks });
                groups.len() - 1
            });
            layer.kv = (group, groups[group].layers);
            groups[group].layers += 1;
            last[kind] = Some((layer.kv, (heads, head_dim)));
        }
        self.kv = KvLayout(groups);
        Ok(())
    }
}

fn is_layer(key: &str, count: usize) -> bool {
    key.parse::<usize>().is_ok_and(|number| number < count)
}

#[cfg(test)]
mod tests {
    use ocelli_engine::kv::{Blocks, Keep};
    use serde_json::json;

    use super::super::{Keys, TextPlan};
    use crate::fields::Config;

    fn read(text: serde_json::Value) -> ocelli_engine::Result<TextPlan> {
        let config = Config::new("config.json".into(), text);
        let plan = TextPlan::read(&config.root(), &["gemma4_text"], Some(true));
        assert!(plan.is_err() || config.unread().is_empty(), "{:?}", config.unread());
        plan
    }

    /// The kind with inputs of layers: the last ones read keys of the last one of their kind that has some.
    #[test]
    fn shared_keys() {
        let plan = read(json!({"num_hidden_layers": 5, "num_kv_shared_layers": 2, "use_double_wide_mlp": true, "global_head_dim": 512,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "num_attention_heads": 8, "num_key_value_heads": 1, "num_global_key_value_heads": 4, "intermediate_size": 6144}))
        .unwrap();
        let kv: Vec<_> = plan.layers.iter().map(|layer| layer.kv).collect();
        assert_eq!(kv, [(0, 0), (0, 1), (1, 0), (0, 1), (1, 0)]);
        let heads: Vec<_> = plan.layers.iter().map(|layer| (layer.heads_kv, layer.head_dim)).collect();
        // The key heads of full layers count where keys are values alone.
        assert_eq!(heads, [(1, 256), (1, 256), (1, 512), (1, 256), (1, 512)]);
        assert_eq!((plan.layers[2].keys, plan.layers[3].keys), (Keys::Own, Keys::Earlier));
        assert_eq!((plan.layers[2].mlp, plan.layers[3].mlp), (6144, 12_288));
        assert_eq!(plan.kv.0[0].blocks, Blocks::Nothing);
        assert_eq!(plan.inputs.map(|inputs| inputs.d), Some(256));
    }

    #[test]
    fn keys_that_are_values() {
        let plan = read(json!({"num_hidden_layers": 6, "attention_k_eq_v": true, "num_global_key_value_heads": 2, "sliding_window": 1024,
            "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"}))
        .unwrap();
        assert_eq!((plan.layers[0].keys, plan.layers[5].keys), (Keys::Own, Keys::AlsoValues));
        let groups: Vec<_> =
            plan.kv.0.iter().map(|g| (g.layers, g.heads, g.head_dim, g.keep, g.blocks)).collect();
        assert_eq!(
            groups,
            [(5, 4, 256, Keep::Window(1024), Blocks::Ahead), (1, 2, 512, Keep::All, Blocks::Nothing)]
        );
    }

    #[test]
    fn errors_name_the_field() {
        for (text, what) in [
            (json!({"use_bidirectional_attention": "all"}), "use_bidirectional_attention: expected vision"),
            (
                json!({"vocab_size_per_layer_input": 7}),
                "vocab_size_per_layer_input: expected vocab_size 262144",
            ),
            (json!({"num_kv_shared_layers": 30}), "num_kv_shared_layers: expected less than 30"),
            (json!({"num_kv_shared_layers": 27}), "num_kv_shared_layers: expected a layer of each kind"),
            (
                json!({"per_layer_config": {"30": {}}}),
                "per_layer_config: expected numbers of layers below 30",
            ),
            (
                json!({"per_layer_config": {"3": {"num_key_value_heads": 3}}}),
                "layer 3: expected num_attention",
            ),
            (json!({"enable_moe_block": true}), "num_experts: expected a value"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
