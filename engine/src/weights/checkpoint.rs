//! All weights of a model: one safetensors file, or shards named by an index.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use ocelli_kernels::{DType, View};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::imagined::Imagined;
use super::{Bank, Copied, Fold, Note, Quantization, Scope, TensorFile, TensorInfo, WeightError, near};
use crate::adapter::{Deltas, Peft};
use crate::files::ModelFiles;

/// Name of the weights of a model that has one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// Name of the index of a model that has several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Most shards of a checkpoint: each is an open map.
const MAX_SHARDS: usize = 4096;

/// The weights of a model. Opening reads headers alone; tensors are read where they lie when they are used.
pub struct Checkpoint {
    path: String,
    files: Vec<TensorFile>,
    /// Name to file and tensor, in the order of the files.
    names: Vec<(usize, usize)>,
    /// File and tensor by name, only where an index chooses among shards.
    chosen: Option<HashMap<String, (usize, usize)>>,
    quantization: Option<Quantization>,
    /// What errors call the file that states the quantization.
    config: String,
    /// What was taken.
    pub(super) notes: Mutex<Vec<Note>>,
    /// What was declared of who takes what.
    pub(super) folds: Mutex<Vec<Fold>>,
    /// What was declared of tensors of all experts.
    pub(super) banks: Mutex<Vec<Bank>>,
    /// Whether what is made of tensors has sizes alone.
    planned: bool,
    /// What is added to its matrices.
    deltas: Deltas,
    /// What was asked for, of a checkpoint that is not there.
    pub(super) imagined: Option<Imagined>,
    /// Bytes of planes that were made.
    made: AtomicU64,
    /// Whether planes along `n` are used as they lie.
    along_n: AtomicBool,
    /// See [`is_unnamed`](Self::is_unnamed).
    unnamed: OnceLock<bool>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`, of a model. From `config.json`, if
    /// there is one, it takes the quantization that the file states.
    ///
    /// # Errors
    /// If there are no such files, if one is not valid, or if index and shards do not agree.
    pub fn open(files: &ModelFiles) -> Result<Self, WeightError> {
        let config = files.json::<serde_json::Value>("config.json")?;
        let mut quantization = config.and_then(|config| Quantization::of_config(&config));
        if quantization.is_none()
            && let Some(block) = files.json::<serde_json::Value>("quantize_config.json")?
        {
            quantization = Quantization::of_gptq(&block);
        }
        let mut checkpoint = if files.contains(SINGLE) {
            Self::single(files.describe(SINGLE), open_file(files, SINGLE)?)
        } else if files.contains(INDEX) {
            Self::sharded(files)?
        } else {
            return Err(no_weights(files));
        };
        checkpoint.quantization = quantization;
        checkpoint.config = files.describe("config.json");
        Ok(checkpoint)
    }

    /// A checkpoint of one file.
    #[must_use]
    pub fn of_file(file: TensorFile) -> Self {
        Self::single(file.path().to_owned(), file)
    }

    /// The same with the quantization that a configuration states.
    #[must_use]
    pub fn with_config(mut self, config: &serde_json::Value) -> Self {
        self.quantization = Quantization::of_config(config);
        self
    }

    fn single(path: String, file: TensorFile) -> Self {
        let names = (0..file.names().count()).map(|tensor| (0, tensor)).collect();
        let (chosen, quantization, config) = (None, None, String::new());
        let (notes, folds, banks, made, along_n, unnamed) = Default::default();
        Self {
            path,
            files: vec![file],
            names,
            chosen,
            quantization,
            config,
            notes,
            folds,
            banks,
            planned: false,
            deltas: Deltas::default(),
            imagined: None,
            made,
            along_n,
            unnamed,
        }
    }

    fn sharded(files: &ModelFiles) -> Result<Self, WeightError> {
        let path = files.describe(INDEX);
        let invalid = |reason: String| WeightError::invalid(&path, reason);
        let Index { weight_map: Pairs(pairs) } = files.require_json(INDEX)?;
        if pairs.is_empty() {
            return Err(invalid("weight_map: expected tensors, found none".into()));
        }
        let mut shards: HashMap<&str, usize> = HashMap::new();
        let mut opened: Vec<TensorFile> = Vec::new();
        let mut chosen = HashMap::with_capacity(pairs.len());
        for (name, shard) in &pairs {
            let file = match shards.get(&**shard) {
                Some(&file) => file,
                None => {
                    if !stays_inside(shard) {
                        return Err(invalid(format!(
                            "weight_map: tensor `{name}`: expected a file beside the index, found `{shard}`"
                        )));
                    }
                    if opened.len() == MAX_SHARDS {
                        return Err(invalid(format!("weight_map: more than {MAX_SHARDS} files")));
                    }
                    if !files.contains(shard) {
                        return Err(invalid(format!(
                            "weight_map: tensor `{name}`: expected the file `{shard}`, found no such file"
                        )));
                    }
                    opened.push(open_file(files, shard)?);
                    shards.insert(shard, opened.len() - 1);
                    opened.len() - 1
                }
            };
            let tensor = opened[file].index(name).ok_or_else(|| {
                invalid(format!(
                    "weight_map: tensor `{name}`: expected it in `{shard}`, found no such tensor there"
                ))
            })?;
            if chosen.insert(name.clone(), (file, tensor)).is_some() {
                return Err(invalid(format!("weight_map: tensor `{name}` is listed twice")));
            }
        }
        let mut names: Vec<_> = chosen.values().copied().collect();
        names.sort_unstable();
        let (chosen, quantization, config) = (Some(chosen), None, String::new());
        let (notes, folds, banks, made, along_n, unnamed) = Default::default();
        Ok(Self {
            path,
            files: opened,
            names,
            chosen,
            quantization,
            config,
            notes,
            folds,
            banks,
            planned: false,
            deltas: Deltas::default(),
            imagined: None,
            made,
            along_n,
            unnamed,
        })
    }

    /// The same for plans: planes that would be made of what the file has are not, and have sizes alone.
    #[must_use]
    pub fn planned(self) -> Self {
        Self { planned: true, ..self }
    }

    /// The same with an adapter added to its matrices: those are made anew, of the type that they have, bf16 where they are quantized.
    ///
    /// # Errors
    /// If the adapter is of another model.
    pub fn merged_with(self, adapter: &Peft) -> crate::error::Result<Self> {
        Ok(Self { deltas: Deltas::of(adapter, &self)?, ..self })
    }

    /// What is added to its matrices.
    #[must_use]
    pub const fn deltas(&self) -> &Deltas {
        &self.deltas
    }

    /// Whether weights that lie along `n` ([`Format::KMajor`](ocelli_kernels::Format)) are used as they lie, which CPUs can; else they are
    /// stored anew along `k`. For what is loaded from now on.
    pub fn keep_along_n(&self, keep: bool) {
        self.along_n.store(keep, Ordering::Relaxed);
    }

    /// Whether they are.
    pub(super) fn keeps_along_n(&self) -> bool {
        self.along_n.load(Ordering::Relaxed)
    }

    /// Whether planes have sizes alone, see [`planned`](Self::planned).
    pub(super) const fn is_planned(&self) -> bool {
        self.planned
    }

    pub(super) fn count_made(&self, bytes: usize) {
        self.made.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of planes that were made because the file has them in another order or width: memory beside the file.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// What errors call the checkpoint: the path of its file or index.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.infos().map(|(_, info)| info.bytes as u64).sum()
    }

    /// How `config.json` says that the weights are quantized. The tensors decide; this tells what they leave open.
    #[must_use]
    pub const fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// The error for matrices of a checkpoint whose configuration states a quantization that is not known.
    pub(super) fn refuse_unknown(&self) -> Result<(), WeightError> {
        let Some(quantization) = self.quantization.as_ref().filter(|q| q.is_unknown()) else { return Ok(()) };
        Err(WeightError::Unsupported {
            path: self.config.clone(),
            module: "quantization_config".into(),
            reason: format!("not supported: {}; {}", quantization.name(), super::published::supported()),
        })
    }

    /// Whether the groups of the configuration name none of the modules that have quantized weights: then shapes alone tell how
    /// these are stored, which is said once.
    pub(super) fn is_unnamed(&self) -> bool {
        *self.unnamed.get_or_init(|| {
            let Some(quantization) = self.quantization.as_ref().filter(|q| !q.schemes.is_empty()) else {
                return false;
            };
            let mut modules = self.names().filter_map(|name| name.strip_suffix(".weight_scale")).peekable();
            let Some(first) = modules.peek().copied() else { return false };
            let unnamed = !modules.any(|module| quantization.names(module));
            if unnamed {
                tracing::warn!(
                    "{}: config_groups: expected a target that names `{first}`, found none that names any module with \
                     quantized weights; their shapes tell how they are stored",
                    self.config
                );
            }
            unnamed
        })
    }

    /// Names of all tensors, in the order of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.infos().map(|(name, _)| name)
    }

    /// Names, types and shapes of all tensors, in the order of the files. Reads no data.
    pub fn infos(&self) -> impl Iterator<Item = (&str, TensorInfo<'_>)> {
        self.names.iter().map(|&(file, tensor)| self.files[file].named(tensor))
    }

    fn locate(&self, name: &str) -> Option<(usize, usize)> {
        match &self.chosen {
            Some(chosen) => chosen.get(name).copied(),
            None => self.files.first()?.index(name).map(|tensor| (0, tensor)),
        }
    }

    fn find(&self, name: &str) -> Result<(&TensorFile, usize), WeightError> {
        let (file, tensor) = self.locate(name).ok_or_else(|| self.missing(name, name))?;
        Ok((&self.files[file], tensor))
    }

    /// The error for an absent tensor; `shown` is what the text calls it.
    pub(super) fn missing(&self, name: &str, shown: &str) -> WeightError {
        WeightError::Missing {
            path: self.path.clone(),
            tensor: shown.to_owned(),
            near: near(name, self.names()),
        }
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.locate(name).is_some()
    }

    /// Type and shape of a tensor. Reads no data.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.locate(name).map(|(file, tensor)| self.files[file].info_at(tensor))
    }

    /// A tensor where it lies in its file.
    ///
    /// # Errors
    /// If there is none of that name, or kernels know no such element type or rank.
    pub fn tensor(&self, name: &str) -> Result<View, WeightError> {
        let (file, tensor) = self.find(name)?;
        file.view_at(tensor, None)
    }

    /// As [`tensor`](Self::tensor), seen as another shape of as many elements.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and if the numbers of elements differ.
    pub fn tensor_as(&self, name: &str, shape: &[usize]) -> Result<View, WeightError> {
        let (file, tensor) = self.find(name)?;
        file.view_at(tensor, Some(shape))
    }

    /// A tensor seen as this shape, and its elements as another type of their size.
    pub(super) fn plane(&self, name: &str, shape: &[usize], dtype: DType) -> Result<View, WeightError> {
        let (file, tensor) = self.find(name)?;
        file.view_of(tensor, Some(shape), dtype)
    }

    /// A matrix of bytes as rows of words, see [`TensorFile::words_at`].
    pub(super) fn words(&self, name: &str, n: usize, k: usize) -> Result<View, WeightError> {
        let (file, tensor) = self.find(name)?;
        file.words_at(tensor, n, k)
    }

    /// A small integer tensor as i64, see [`TensorFile::ints`].
    ///
    /// # Errors
    /// If there is none of that name, or it is not integers.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, WeightError> {
        self.find(name)?.0.ints(name)
    }

    /// A copy of a float tensor as f32, see [`TensorFile::floats`].
    ///
    /// # Errors
    /// If there is none of that name, or it is not floats.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        if let Some(zeros) = self.imagined_floats(name) {
            return Ok(zeros);
        }
        self.find(name)?.0.floats(name)
    }

    /// The bytes of a tensor as they lie in its file.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn raw(&self, name: &str) -> Result<&[u8], WeightError> {
        self.find(name)?.0.bytes(name)
    }

    /// The root of the names.
    #[must_use]
    pub fn root(&self) -> Scope<'_> {
        Scope::new(self, String::new())
    }

    /// A place in the tree of names: `at("model.text_model.layers.3")`.
    #[must_use]
    pub fn at(&self, prefix: impl fmt::Display) -> Scope<'_> {
        Scope::new(self, prefix.to_string())
    }

    /// The first of several places that has tensors, for checkpoints whose names changed between versions; the first of
    /// the list if none has.
    #[must_use]
    pub fn at_any(&self, prefixes: &[&str]) -> Scope<'_> {
        self.root().at_any(prefixes)
    }

    /// Tensors that nobody has asked for yet.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        let unused = self.names.iter().filter(|&&(file, tensor)| !self.files[file].is_used(tensor));
        unused.map(|&(file, tensor)| self.files[file].named(tensor).0)
    }

    /// Bytes of the tensors that were asked for: what a run that reads all of them touches of the files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let used = self.names.iter().filter(|&&(file, tensor)| self.files[file].is_used(tensor));
        used.map(|&(file, tensor)| self.files[file].info_at(tensor).bytes as u64).sum()
    }

    /// Tensors that were copied because they are not aligned to their type.
    #[must_use]
    pub fn copied(&self) -> Copied {
        self.files.iter().map(TensorFile::copied).fold(Copied::default(), |a, b| Copied {
            tensors: a.tensors + b.tensors,
            bytes: a.bytes + b.bytes,
        })
    }

    /// Asks the system to read the used tensors in the background, see [`TensorFile::prefetch`].
    pub fn prefetch(&self) {
        self.files.iter().for_each(TensorFile::prefetch);
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} tensors, {} bytes)", self.path, self.names.len(), self.bytes())
    }
}

fn open_file(files: &ModelFiles, name: &str) -> Result<TensorFile, WeightError> {
    match files {
        ModelFiles::Dir(dir) => TensorFile::open(&dir.join(name)),
        ModelFiles::Embedded { files: all, .. } => {
            let label = files.describe(name);
            match all.iter().find(|(file, _)| *file == name) {
                Some((_, bytes)) => TensorFile::embedded(&label, bytes),
                None => Err(crate::files::FileError::Missing(label).into()),
            }
        }
    }
}

/// The error for a model without safetensors, which names what lies there instead.
fn no_weights(files: &ModelFiles) -> WeightError {
    let others = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"];
    let instead = others.into_iter().find(|name| files.contains(name));
    let path = files.path("").map_or_else(|| files.describe(""), |dir| dir.display().to_string());
    WeightError::NoFile { path: path.trim_end_matches('/').to_owned(), instead }
}

/// Whether a name from a file stays below the directory that it is joined to.
fn stays_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', '\0'])
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// Name and file of each tensor, duplicates kept.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor names and file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let file = map
                .next_value::<Cow<'de, str>>()
                .map_err(|e| A::Error::custom(format!("weight_map: tensor `{name}`: {e}")))?;
            pairs.push((name, file.into_owned()));
        }
        Ok(Pairs(pairs))
    }
}
