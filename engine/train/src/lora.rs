//! Adapters of low rank that are trained beside a model whose weights stay as they are, in whatever format.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use ocelli_engine::adapter::{LoraConfig, LowRank, Peft, SiteModule, tensor_name};
use ocelli_engine::files::{BESIDE_WEIGHTS, ModelFiles};
use ocelli_engine::weights::Checkpoint;
use ocelli_engine::{Ctx, Error, Result};
use ocelli_kernels::DType;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::Value;

use crate::fresh::uniform;
use crate::parameters::{Parameter, Parameters};

/// What an adapter is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rank.
    pub r: usize,
    /// The product of its matrices is multiplied with `alpha / r`.
    pub alpha: f64,
    /// Last parts of the paths of the modules that it changes; none: all.
    pub targets: Vec<String>,
    /// Of first values.
    pub seed: u64,
}

/// An adapter that is trained.
pub struct Lora {
    /// Its matrices; B begins as zeros, A as PEFT has it.
    pub parameters: Parameters,
    config: LoraConfig,
}

impl Lora {
    /// A new adapter of the model that was loaded on `cx`, of those of its linear layers that `chosen` and the options name; the context uses
    /// it from now on. `base` is what its files call the model.
    ///
    /// # Errors
    /// If no layer is named, a target names none, or one cannot be adapted.
    pub fn new(
        cx: &mut Ctx,
        options: &LoraOptions,
        chosen: &dyn Fn(&str) -> bool,
        base: Option<&str>,
    ) -> Result<Self> {
        let all: Vec<SiteModule> = cx.adaptable().into_iter().filter(|module| chosen(&module.path)).collect();
        let ends = |module: &SiteModule, target: &str| {
            module.path == target || module.path.strip_suffix(target).is_some_and(|path| path.ends_with('.'))
        };
        let named = |module: &&SiteModule| {
            options.targets.is_empty() || options.targets.iter().any(|target| ends(module, target))
        };
        if let Some(target) =
            options.targets.iter().find(|target| !all.iter().any(|module| ends(module, target)))
        {
            let mut there: Vec<&str> =
                all.iter().map(|module| module.path.rsplit('.').next().unwrap_or(&module.path)).collect();
            there.sort_unstable();
            there.dedup();
            return Err(Error::Train(format!(
                "targets: expected names of linear layers, found `{target}`; there are {}",
                there.join(", ")
            )));
        }
        let modules: Vec<&SiteModule> = all.iter().filter(named).collect();
        let r = options.r;
        let matrix = |name: String, shape: [usize; 2]| Parameter {
            name,
            shape: shape.to_vec(),
            bytes: 0..4 * shape[0] * shape[1],
            stored: DType::F32,
            trained: true,
        };
        let parameters = modules.iter().flat_map(|SiteModule { path, n, k, .. }| {
            [matrix(tensor_name(path, "A"), [r, *k]), matrix(tensor_name(path, "B"), [*n, r])]
        });
        // Uniform to 1 / sqrt(k), which is what PEFT draws.
        let values = |parameter: &Parameter| {
            Ok(if parameter.name.ends_with("lora_A.weight") {
                let bound = 1.0 / (parameter.shape[1] as f64).sqrt();
                uniform(options.seed, &parameter.name, parameter.len(), bound)
            } else {
                vec![0.0; parameter.len()]
            })
        };
        let (parameters, file) = Parameters::place(cx, "the adapter", parameters.collect(), values)?;
        let config = LoraConfig {
            r,
            lora_alpha: options.alpha,
            target_modules: targets(&modules),
            base_model_name_or_path: base.map(str::to_owned),
            ..LoraConfig::default()
        };
        let low = modules.iter().map(|SiteModule { path, .. }| {
            let (a, b) = (file.view(&tensor_name(path, "A"))?, file.view(&tensor_name(path, "B"))?);
            Ok(LowRank { module: path.clone(), a, b, scale: config.scale(path, r) })
        });
        let low = low.collect::<Result<Vec<_>>>()?;
        let adapter = cx.place_adapter("that is trained", &low)?;
        cx.adapt(Some(Arc::new(adapter)));
        Ok(Self { parameters, config })
    }

    /// Writes it as PEFT does.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, cx: &mut Ctx, out: &Path) -> Result<()> {
        let io = |error| Error::Store { path: out.display().to_string(), error };
        let fresh = out.join("adapter_model.safetensors.new");
        self.parameters.save(cx, &fresh)?;
        let config = serde_json::to_string_pretty(&self.config).unwrap_or_default() + "\n";
        std::fs::write(out.join("adapter_config.json"), config).map_err(io)?;
        std::fs::rename(&fresh, out.join("adapter_model.safetensors")).map_err(io)
    }
}

/// What names these modules and no others: PEFT matches it with whole paths.
fn targets(modules: &[&SiteModule]) -> Value {
    let paths: Vec<String> = modules.iter().map(|module| module.path.clone()).collect();
    paths.into()
}

/// A tensor of a file that is written.
struct Stored<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: Cow<'a, [u8]>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a model with an adapter added to its weights: each tensor in the type that it has. Gives the number of matrices that changed.
///
/// # Errors
/// If the adapter is of another model, one of its matrices is quantized, or a file cannot be written.
pub fn merge(files: &ModelFiles, adapter: &Peft, out: &Path) -> Result<usize> {
    let io = |error| Error::Store { path: out.display().to_string(), error };
    let checkpoint = Checkpoint::open(files)?.merged_with(adapter)?;
    let mut changed = 0;
    let mut all: Vec<(&str, Stored<'_>)> = Vec::new();
    for (name, info) in checkpoint.infos() {
        let (dtype, shape) = (info.dtype, info.shape);
        let delta = name.strip_suffix(".weight").and_then(|module| checkpoint.deltas().get(module));
        let bytes = match (delta, dtype) {
            (Some(delta), Dtype::F32 | Dtype::BF16 | Dtype::F16) => {
                let mut values = checkpoint.floats(name)?;
                if !<[usize; 2]>::try_from(shape).is_ok_and(|shape| delta.add_to(shape, &mut values)) {
                    let expected = delta.shape();
                    let reason = format!("`{name}`: expected shape {expected:?}, found {shape:?}");
                    return Err(Error::Adapter { name: "to merge".into(), reason });
                }
                changed += 1;
                Cow::Owned(match dtype {
                    Dtype::BF16 => {
                        values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
                    }
                    Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
                    _ => values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
                })
            }
            _ => Cow::Borrowed(checkpoint.raw(name)?),
        };
        all.push((name, Stored { dtype, shape, bytes }));
    }
    let hint = "quantized matrices keep their adapter beside them, or are merged as a model is loaded";
    checkpoint.deltas().check(&format!("to merge ({hint})"))?;
    std::fs::create_dir_all(out).map_err(io)?;
    for name in std::iter::once("config.json").chain(BESIDE_WEIGHTS.iter().copied()) {
        if let Some(bytes) = files.read(name)? {
            std::fs::write(out.join(name), bytes).map_err(io)?;
        }
    }
    let fresh = out.join("model.safetensors.new");
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    serialize_to_file(all, Some(metadata), &fresh)
        .map_err(|error| io(std::io::Error::other(error.to_string())))?;
    std::fs::rename(&fresh, out.join("model.safetensors")).map_err(io)?;
    Ok(changed)
}
