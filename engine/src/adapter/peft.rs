//! Adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Adapter, LowRank};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::weights::TensorFile;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// Fields that would change what an adapter computes, if they were neither absent, null nor false.
const OTHERS: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
    "exclude_parameters",
];

/// What `adapter_config.json` says of a LoRA adapter; what is not here does not change what it computes, or is refused by
/// [`Peft::open`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// `LORA`.
    pub peft_type: String,
    /// Rank of modules that `rank_pattern` does not name.
    pub r: usize,
    /// Products are multiplied with `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Share of inputs that are left out while training elsewhere; never here.
    pub lora_dropout: f64,
    /// Modules that are adapted, by the ends of their paths or one expression.
    pub target_modules: Value,
    /// Ranks by the ends of paths.
    pub rank_pattern: Map<String, Value>,
    /// Alphas by the ends of paths.
    pub alpha_pattern: Map<String, Value>,
    /// Whether products are multiplied with `lora_alpha / sqrt(r)` instead.
    pub use_rslora: bool,
    /// Whether magnitudes are learnt apart (DoRA).
    pub use_dora: bool,
    /// Whether the matrix B has biases.
    pub lora_bias: bool,
    /// Whether matrices are stored `[k, n]`.
    pub fan_in_fan_out: bool,
    /// Biases that were trained.
    pub bias: String,
    /// What the adapter is of.
    pub base_model_name_or_path: Option<String>,
    /// What it is for, as PEFT names it.
    pub task_type: Option<String>,
    /// Whether it is for answering alone.
    pub inference_mode: bool,
    /// All else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Value::Null,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            fan_in_fan_out: false,
            bias: "none".into(),
            base_model_name_or_path: None,
            task_type: None,
            inference_mode: true,
            rest: Map::new(),
        }
    }
}

impl LoraConfig {
    /// What the products of a module of this rank are multiplied with.
    #[must_use]
    pub fn scale(&self, module: &str, r: usize) -> f32 {
        let alpha = named(&self.alpha_pattern, module).and_then(Value::as_f64).unwrap_or(self.lora_alpha);
        let r = r.max(1) as f64;
        (alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }
}

/// What a pattern of PEFT says of a module: its keys are expressions that a path, or its end after a dot, has to match.
fn named<'a>(patterns: &'a Map<String, Value>, module: &str) -> Option<&'a Value> {
    let fits = |key: &str| {
        Regex::new(&format!(r"^(.*\.)?({key})$")).is_ok_and(|regex| regex.is_match(module).unwrap_or(false))
    };
    patterns.iter().find(|(key, _)| fits(key)).map(|(_, value)| value)
}

/// What PEFT calls a matrix of a module: `which` is `A` or `B`.
#[must_use]
pub fn tensor_name(module: &str, which: &str) -> String {
    format!("base_model.model.{module}.lora_{which}.weight")
}

/// The module and the matrix, `A` or `B`, that a tensor of PEFT is.
#[must_use]
pub fn module_of(tensor: &str) -> Option<(&str, &str)> {
    let path = tensor.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    // Older files name the adapter: `lora_A.default.weight`.
    ["A", "B"].into_iter().find_map(|which| {
        let path = path.strip_suffix(".default").unwrap_or(path);
        Some((path.strip_suffix(which)?.strip_suffix(".lora_")?, which))
    })
}

/// Names of the parts of models that versions and libraries put at different places of a path.
const WRAPPERS: [&str; 4] = ["model", "language_model", "text_model", "module"];

/// A path without what versions of a model disagree on.
fn bare(path: &str) -> String {
    let kept: Vec<&str> = path.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    kept.join(".")
}

/// The matrices of a module: its path in the checkpoint, n, k and r, the values of A times the scale, and those of B.
pub(super) type Matrices = (String, [usize; 3], Vec<f32>, Vec<f32>);

/// An adapter in a folder.
pub struct Peft {
    path: PathBuf,
    /// What it says of itself.
    pub config: LoraConfig,
    file: TensorFile,
    /// Module as it is called there, and the names of A and B.
    pairs: Vec<(String, [String; 2])>,
}

impl Peft {
    /// Opens a folder and checks that all of what is in it can be used.
    ///
    /// # Errors
    /// If a file is absent or not valid, the adapter is not of low rank, or it changes more than products.
    pub fn open(folder: &Path) -> Result<Self> {
        let files = ModelFiles::dir(folder);
        let config: LoraConfig = files.require_json(CONFIG)?;
        let refuse = |reason: String| Error::Adapter { name: folder.display().to_string(), reason };
        let unless =
            |wrong: bool, what: &str| if wrong { Err(refuse(format!("{CONFIG}: {what}"))) } else { Ok(()) };
        if !config.peft_type.eq_ignore_ascii_case("LORA") {
            return Err(refuse(format!("{CONFIG}: peft_type: expected LORA, found {}", config.peft_type)));
        }
        unless(config.use_dora, "use_dora: magnitudes beside low ranks (DoRA) are not supported")?;
        unless(config.lora_bias, "lora_bias: biases of low ranks are not supported")?;
        unless(config.fan_in_fan_out, "fan_in_fan_out: matrices along their inputs are not supported")?;
        unless(config.bias != "none", "bias: trained biases are not supported")?;
        for field in OTHERS {
            let value = config.rest.get(field).unwrap_or(&Value::Null);
            let nothing = matches!(value, Value::Null | Value::Bool(false))
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            unless(!nothing, &format!("{field}: expected nothing, found {value}: not supported"))?;
        }
        let file = TensorFile::open(&folder.join(TENSORS))?;
        let mut pairs: Vec<(String, [Option<String>; 2])> = Vec::new();
        for name in file.names() {
            let Some((module, which)) = module_of(name) else {
                return Err(refuse(format!(
                    "{TENSORS}: tensor `{name}`: expected lora_A or lora_B of a linear layer"
                )));
            };
            let at = pairs.iter().position(|(known, _)| known == module).unwrap_or_else(|| {
                pairs.push((module.to_owned(), [None, None]));
                pairs.len() - 1
            });
            pairs[at].1[usize::from(which == "B")] = Some(name.to_owned());
        }
        let whole = pairs.into_iter().map(|(module, pair)| match pair {
            [Some(a), Some(b)] => Ok((module, [a, b])),
            [None, _] => Err(refuse(format!("{TENSORS}: `{module}` has no lora_A"))),
            _ => Err(refuse(format!("{TENSORS}: `{module}` has no lora_B"))),
        });
        let pairs = whole.collect::<Result<Vec<_>>>()?;
        if pairs.is_empty() {
            return Err(refuse(format!("{TENSORS}: expected tensors, found none")));
        }
        Ok(Self { path: folder.to_owned(), config, file, pairs })
    }

    /// A text that differs where the adapter does.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn identity(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        hash.update(serde_json::to_string(&self.config).unwrap_or_default().as_bytes());
        for (_, pair) in &self.pairs {
            for name in pair {
                hash.update(name.as_bytes()).update(self.file.bytes(name)?);
            }
        }
        Ok(hash.finalize().to_hex().to_string())
    }

    /// The matrices of its modules. `known` are the paths of a checkpoint: what versions of a model call otherwise is found by the
    /// rest of its path.
    pub(super) fn matrices(&self, known: &[&str]) -> Result<Vec<Matrices>> {
        let refuse = |reason: String| Error::Adapter { name: self.path.display().to_string(), reason };
        let mut all = Vec::with_capacity(self.pairs.len());
        for (module, [a, b]) in &self.pairs {
            let path = known.iter().find(|path| *path == module).or_else(|| {
                let mut same = known.iter().filter(|path| bare(path) == bare(module));
                same.next().filter(|_| same.next().is_none())
            });
            let Some(path) = path else {
                return Err(refuse(format!(
                    "`{module}`: the model has no linear layer of this name that adapters can be made for"
                )));
            };
            let shape = |name: &str| self.file.info(name).map(|info| info.shape.to_vec()).unwrap_or_default();
            let (of_a, of_b) = (shape(a), shape(b));
            let (&[r, k], &[n, rank]) = (&of_a[..], &of_b[..]) else {
                return Err(refuse(format!(
                    "`{module}`: expected two matrices, found shapes {of_a:?} and {of_b:?}"
                )));
            };
            if r != rank || r == 0 {
                return Err(refuse(format!(
                    "`{module}`: expected A and B of one rank, found shapes {of_a:?} and {of_b:?}"
                )));
            }
            let scale = self.config.scale(module, r);
            let mut values = self.file.floats(a)?;
            values.iter_mut().for_each(|value| *value *= scale);
            all.push(((*path).to_owned(), [n, k, r], values, self.file.floats(b)?));
        }
        Ok(all)
    }

    /// Copies it to the device of a context that a model was loaded on.
    ///
    /// # Errors
    /// If it is not of that model.
    pub fn place(&self, cx: &mut Ctx, name: &str) -> Result<Adapter> {
        let sites = cx.adaptable();
        let known: Vec<&str> = sites.iter().map(|site| &*site.path).collect();
        let mut all = Vec::new();
        for (module, [n, k, r], a, b) in self.matrices(&known)? {
            let mut put = |shape: [usize; 2], values: &[f32]| -> Result<_> {
                let tensor = cx.alloc_owned(&shape, cx.dtype())?;
                cx.write_floats(&tensor, values)?;
                Ok(tensor.view().clone())
            };
            let (a, b) = (put([r, k], &a)?, put([n, r], &b)?);
            all.push(LowRank { module, a, b, scale: 1.0 });
        }
        cx.place_adapter(name, &all)
    }
}
