//! What `config.json` says about quantization, in the layout of compressed-tensors.
//!
//! The tensors of a module decide whether and how it is quantized. The configuration tells only what they leave open
//! (which of two group sizes that give as many groups) and what changes the arithmetic without a trace in the tensors
//! (quantized activations, rotations). A block of no known method is refused, whatever the tensors look like.

use std::fmt;

use fancy_regex::Regex;
use serde_json::{Map, Value};

/// Methods whose tensors tell what they are: read, or refused with their name.
const KNOWN: [&str; 13] = [
    "compressed-tensors",
    "fp8",
    "fbgemm_fp8",
    "sparseml",
    "modelopt",
    "gptq",
    "awq",
    "bitsandbytes",
    "hqq",
    "quanto",
    "torchao",
    "auto-round",
    "intel/auto-round",
];

/// Where blocks state rotations of the weights: compressed-tensors, and AutoRound.
const ROTATIONS: [&str; 3] = ["transform_config", "rotation_config", "spinquant_config"];

/// How blocks of MLX are called, which name no method.
const MLX: &str = "MLX ";

/// The quantization block of a `config.json`.
#[derive(Debug)]
pub struct Quantization {
    /// `quant_method`: `compressed-tensors`, `gptq`, `awq`, ...; empty if the block does not name one.
    pub method: String,
    /// `format`: `pack-quantized`, `mixed-precision`, ...; empty if absent.
    pub format: String,
    /// The `config_groups` of compressed-tensors, in file order.
    pub schemes: Vec<Scheme>,
    /// `bits` (or `w_bit`), where one number holds for all modules.
    pub bits: Option<u64>,
    /// `group_size` (or `q_group_size`): weights that share a scale, where one number holds for all modules.
    pub group: Option<usize>,
    /// Whether zero points are stated to be in the middle: `sym` of GPTQ, or that AWQ has no `zero_point`. Of files that are read their own
    /// zero points tell.
    pub centred: bool,
    /// `version` of AWQ: `gemm` or another layout; empty if absent.
    pub version: String,
    /// `checkpoint_format` of GPTQ: `gptq`, `gptq_v2`, ...; empty if absent.
    pub checkpoint_format: String,
    /// `packing_format` (once `backend`) of AutoRound: `auto_round:auto_gptq`, ...; empty if absent.
    pub packing: String,
    /// `data_type` of AutoRound: `int`, `nv_fp`, `mx_int`, ...; empty if absent.
    pub data_type: String,
    /// `mode` of MLX; empty if absent.
    mode: String,
    /// `weight_block_size`: rows and columns of a block that shares a scale.
    pub block: Option<[usize; 2]>,
    /// Whether rotations of the weights are stated: `transform_config` and its like.
    pub transforms: bool,
    /// What the block is, in words, where it names no method.
    unnamed: String,
    ignore: Vec<Target>,
}

/// One group of modules that are quantized alike.
#[derive(Debug)]
pub struct Scheme {
    /// Name of the group.
    pub name: String,
    /// `format` of the group, or that of the whole block.
    pub format: String,
    /// Bits of a weight.
    pub bits: u64,
    /// Whether weights are integers, not floats.
    pub integer: bool,
    /// Whether there are no zero points.
    pub symmetric: bool,
    /// `group`, `channel`, `tensor`, `block`, ...
    pub strategy: String,
    /// Weights along the input axis that share a scale, for strategy `group`.
    pub group: Option<u64>,
    /// Rows and columns of a block that shares a scale, for strategy `block`.
    pub block: Option<[usize; 2]>,
    /// Whether activations are quantized too.
    pub activations: bool,
    targets: Vec<Target>,
}

/// A module by class, by name, or by a regular expression anchored at the start.
#[derive(Debug)]
enum Target {
    Name(String),
    Pattern(Box<Regex>),
    /// A pattern that does not compile; it matches nothing.
    Broken,
}

impl Target {
    fn all(list: Option<&Value>) -> Vec<Self> {
        let texts = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let target = |text: &str| match text.strip_prefix("re:") {
            None => Self::Name(text.to_owned()),
            Some(pattern) => match Regex::new(&format!("^(?:{pattern})")) {
                Ok(regex) => Self::Pattern(Box::new(regex)),
                Err(e) => {
                    tracing::warn!("quantization_config: pattern `{pattern}` matches nothing: {e}");
                    Self::Broken
                }
            },
        };
        texts.map(target).collect()
    }

    /// How closely it names a module: 3 its name, 2 a pattern, 1 its class, 0 not at all.
    fn matches(&self, module: &str) -> u8 {
        match self {
            Self::Name(name) if name == module => 3,
            Self::Name(name) if name == class_of(module) => 1,
            // A pattern that gives up on a name does not match it.
            Self::Pattern(regex) if regex.is_match(module).unwrap_or(false) => 2,
            _ => 0,
        }
    }
}

/// The class that a quantizer sees in a module with a stored matrix.
fn class_of(module: &str) -> &'static str {
    let last = module.rsplit('.').next().unwrap_or(module);
    if last.contains("embed") || matches!(last, "wte" | "wpe") { "Embedding" } else { "Linear" }
}

impl Quantization {
    /// The quantization block of a configuration: at its top, or in its `text_config`.
    #[must_use]
    pub fn of_config(config: &Value) -> Option<Self> {
        let text = config.get("text_config").unwrap_or(&Value::Null);
        let places = [config, text].into_iter().flat_map(|at| {
            ["quantization_config", "compression_config", "quantization"].map(|key| at.get(key))
        });
        let mut blocks = places.flatten().filter_map(Value::as_object);
        blocks.find(|block| !block.is_empty()).map(Self::of_block)
    }

    fn of_block(block: &Map<String, Value>) -> Self {
        let format = text(block.get("format"));
        let groups = block.get("config_groups").and_then(Value::as_object);
        let schemes = groups.into_iter().flatten().map(|(name, group)| Scheme::new(name, group, &format));
        Self {
            method: text(block.get("quant_method")),
            unnamed: unnamed(block),
            schemes: schemes.collect(),
            bits: ["bits", "w_bit"].iter().find_map(|key| block.get(*key)?.as_u64()),
            group: ["group_size", "q_group_size"]
                .iter()
                .find_map(|key| usize::try_from(block.get(*key)?.as_u64()?).ok()),
            centred: block.get("sym").and_then(Value::as_bool).unwrap_or(false)
                || block.get("zero_point").and_then(Value::as_bool) == Some(false),
            version: text(block.get("version")),
            checkpoint_format: text(block.get("checkpoint_format")),
            packing: text(block.get("packing_format").or_else(|| block.get("backend"))),
            data_type: text(block.get("data_type")),
            mode: text(block.get("mode")),
            block: block_shape(block.get("weight_block_size")),
            transforms: ROTATIONS.iter().any(|key| block.get(*key).is_some_and(is_filled)),
            ignore: Target::all(block.get("ignore")),
            format,
        }
    }

    /// What `quantize_config.json` states, beside files of GPTQ that were written before configurations had it.
    #[must_use]
    pub fn of_gptq(block: &Value) -> Option<Self> {
        let block = block.as_object().filter(|block| block.contains_key("bits"))?;
        let mut block = block.clone();
        block.entry("quant_method").or_insert_with(|| "gptq".into());
        Some(Self::of_block(&block))
    }

    /// Method and format in words.
    #[must_use]
    pub fn name(&self) -> String {
        let method = if self.method.is_empty() { &self.unnamed } else { &self.method };
        if self.format.is_empty() { method.clone() } else { format!("{method} {}", self.format) }
    }

    /// Whether zero points of GPTQ's layout are stored as they are, not less one: in its second version, and in AutoRound's own layouts.
    #[must_use]
    pub fn zeros_are_whole(&self) -> bool {
        let second = |format: &str| format == "gptq_v2";
        let less = self.packing.contains("gptq") && !self.packing.contains("gptqmodel");
        second(&self.checkpoint_format)
            || second(&self.format)
            || self.method.ends_with("auto-round") && !less
    }

    /// Whether nothing is known of how such weights are stored.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        let mlx = self.unnamed.starts_with(MLX)
            && matches!(&*self.mode, "" | "affine" | "mxfp4" | "mxfp8" | "nvfp4");
        let known = KNOWN.contains(&self.method.as_str());
        let named = !self.method.is_empty();
        self.schemes.is_empty() && !known && (named || !(mlx || self.unnamed == "bitsandbytes"))
    }

    /// Whether the `config_groups` name a module, ignored or not.
    #[must_use]
    pub fn names(&self, module: &str) -> bool {
        self.schemes.iter().flat_map(|scheme| &scheme.targets).any(|target| target.matches(module) > 0)
    }

    /// The group that a module belongs to, if any: that with the closest target, unless the module is to be ignored.
    #[must_use]
    pub fn scheme(&self, module: &str) -> Option<&Scheme> {
        if self.ignore.iter().any(|target| target.matches(module) > 0) {
            return None;
        }
        let best =
            |scheme: &Scheme| scheme.targets.iter().map(|target| target.matches(module)).max().unwrap_or(0);
        // The first of the closest, as the last of equal maxima is taken.
        let closest =
            self.schemes.iter().rev().map(|scheme| (best(scheme), scheme)).max_by_key(|(score, _)| *score);
        closest.filter(|(score, _)| *score > 0).map(|(_, scheme)| scheme)
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        for (index, scheme) in self.schemes.iter().enumerate() {
            write!(f, "{} {scheme}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl Scheme {
    fn new(name: &str, group: &Value, format: &str) -> Self {
        if group.is_array() {
            return Self::preset(name, group, format);
        }
        let weights = group.get("weights").unwrap_or(&Value::Null);
        let own = text(group.get("format"));
        Self {
            name: name.to_owned(),
            format: if own.is_empty() { format.to_owned() } else { own },
            bits: weights.get("num_bits").and_then(Value::as_u64).unwrap_or(0),
            integer: weights.get("type").and_then(Value::as_str).is_none_or(|kind| kind == "int"),
            symmetric: weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true),
            strategy: text(weights.get("strategy")),
            group: weights.get("group_size").and_then(Value::as_u64).filter(|&size| size > 0),
            block: block_shape(weights.get("block_structure")),
            activations: group.get("input_activations").is_some_and(is_filled),
            targets: Target::all(group.get("targets")),
        }
    }

    /// A group that is only a name and its targets: `"W4A16": ["Linear"]`.
    fn preset(name: &str, targets: &Value, format: &str) -> Self {
        let (bits, group) = match name {
            "W4A16" | "W4A16_ASYM" => (4, Some(128)),
            "W8A16" => (8, None),
            _ => (0, None),
        };
        Self {
            name: name.to_owned(),
            format: format.to_owned(),
            bits,
            integer: bits > 0,
            symmetric: !name.ends_with("_ASYM"),
            strategy: if group.is_some() { "group" } else { "channel" }.to_owned(),
            group,
            block: None,
            activations: bits == 0,
            targets: Target::all(Some(targets)),
        }
    }

    /// Whether this group could have written integers of so many bits with so many scales a row of `k` weights; then
    /// the weights that share a scale, 0 for the whole row.
    #[must_use]
    pub fn group_for(&self, bits: u8, k: usize, groups: usize) -> Option<usize> {
        if self.bits != u64::from(bits) || !self.integer {
            return None;
        }
        match self.group {
            Some(size) => {
                let size = usize::try_from(size).ok()?;
                (k.div_ceil(size) == groups).then_some(if size > k { 0 } else { size })
            }
            None => (groups == 1).then_some(0),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.name, if self.integer { "int" } else { "float" }, self.bits)?;
        match self.group {
            Some(group) => write!(f, " {} {group}", self.strategy)?,
            None => write!(f, " {}", self.strategy)?,
        }
        f.write_str(if self.symmetric { "" } else { " with zero points" })?;
        f.write_str(if self.activations { " and activations" } else { "" })
    }
}

/// What a block without `quant_method` is. MLX states bits and group size, and either again for single modules, by their
/// names; bitsandbytes once had only its flags.
fn unnamed(block: &Map<String, Value>) -> String {
    let number = |key: &str| block.get(key).and_then(Value::as_u64);
    if block.contains_key("config_groups") {
        return "compressed-tensors".into();
    }
    if block.keys().any(|key| key.starts_with("load_in_") || key.starts_with("bnb_")) {
        return "bitsandbytes".into();
    }
    let modules = block.iter().filter(|(name, of)| name.contains('.') && (of.is_object() || of.is_boolean()));
    match (number("bits"), number("group_size"), modules.count()) {
        (Some(bits), Some(group), modules) => {
            let mode = block.get("mode").and_then(Value::as_str).unwrap_or("affine");
            let others = match modules {
                0 => String::new(),
                1 => ", otherwise for 1 module".into(),
                n => format!(", otherwise for {n} modules"),
            };
            format!("{MLX}{mode}: {bits} bits in groups of {group}{others}")
        }
        _ => {
            let fields: Vec<&str> = block.keys().map(String::as_str).take(5).collect();
            format!("of no named method (fields: {})", fields.join(", "))
        }
    }
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Rows and columns of a block, both above zero.
fn block_shape(value: Option<&Value>) -> Option<[usize; 2]> {
    let sizes: Vec<usize> = serde_json::from_value(value?.clone()).ok()?;
    <[usize; 2]>::try_from(sizes).ok().filter(|sizes| !sizes.contains(&0))
}

/// Whether a value says anything: not null, not an empty object or list.
fn is_filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_without_a_known_method_are_told_apart() {
        let of = |block: Value| Quantization::of_config(&serde_json::json!({"quantization_config": block}));
        let mlx = serde_json::json!({"group_size": 64, "bits": 4, "mode": "affine",
            "model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8}, "vision_tower.fc1": false});
        let known = of(mlx.clone()).unwrap();
        assert!(!known.is_unknown());
        let other = of(serde_json::json!({"group_size": 64, "bits": 4, "mode": "codebook"})).unwrap();
        assert!(other.is_unknown());
        assert_eq!(known.name(), "MLX affine: 4 bits in groups of 64, otherwise for 2 modules");
        let short =
            Quantization::of_config(&serde_json::json!({"quantization": {"bits": 8, "group_size": 32}}));
        assert_eq!(short.unwrap().name(), "MLX affine: 8 bits in groups of 32");
        for (block, name, unknown) in [
            (serde_json::json!({"load_in_8bit": true}), "bitsandbytes", false),
            (serde_json::json!({"w_bit": 4}), "of no named method (fields: w_bit)", true),
            (serde_json::json!({"quant_method": "vptq", "format": "x"}), "vptq x", true),
            (serde_json::json!({"quant_method": 7}), "of no named method (fields: quant_method)", true),
            (serde_json::json!({"quant_method": "fp8"}), "fp8", false),
            (serde_json::json!({"quant_method": "gptq", "bits": 4, "group_size": 128}), "gptq", false),
            (
                serde_json::json!({"format": "pack-quantized", "config_groups": {"W8A16": ["Linear"]}}),
                "compressed-tensors pack-quantized",
                false,
            ),
        ] {
            let found = of(block).unwrap();
            assert_eq!((found.name().as_str(), found.is_unknown()), (name, unknown));
        }
        assert!(of(serde_json::json!({})).is_none());
    }

    #[test]
    fn closest_target_wins_and_ignore_wins_over_all() {
        let config = serde_json::json!({"text_config": {"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "transform_config": {},
        "ignore": ["re:.*vision.*", "lm_head"],
        "config_groups": {
            "W8A16": ["Linear"],
            "down": {"targets": ["re:.*mlp\\.down_proj$"], "weights": {"num_bits": 4, "group_size": 64,
                "strategy": "group", "symmetric": false, "type": "int"}, "input_activations": null},
            "one": {"targets": ["layers.0.mlp.down_proj"], "weights": {"num_bits": 8, "strategy": "channel"}},
            "table": {"targets": ["Embedding"], "weights": {"num_bits": 8, "strategy": "channel"}},
        }}}});
        let quantization = Quantization::of_config(&config).unwrap();
        let name = |module| quantization.scheme(module).map(|scheme| scheme.name.as_str());
        assert_eq!(name("layers.1.mlp.down_proj"), Some("down"));
        assert_eq!(name("layers.1.mlp.down_proj_extra"), Some("W8A16"));
        assert_eq!(name("layers.0.mlp.down_proj"), Some("one"));
        assert_eq!(name("model.embed_tokens"), Some("table"));
        assert_eq!(name("lm_head"), None);
        assert_eq!(name("model.vision_model.fc1"), None);
        assert!(!quantization.transforms);
        let down = quantization.scheme("layers.1.mlp.down_proj").unwrap();
        assert_eq!(down.group_for(4, 256, 4), Some(64));
        assert_eq!(down.group_for(4, 256, 2), None);
        assert_eq!(down.group_for(8, 256, 4), None);
        assert_eq!(down.group_for(4, 32, 1), Some(0));
        assert!(quantization.to_string().contains("down int4 group 64 with zero points"), "{quantization}");
    }
}
