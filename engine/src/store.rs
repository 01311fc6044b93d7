//! Features of pictures on disk, for models that see them again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::Hasher;
use ocelli_kernels::DType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::ctx::{Ctx, Precision};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::image::Key;
use crate::prompt::Features;
use crate::tensor::Tensor;

/// Where a file keeps the hash of its data.
const HASH: &str = "blake3";

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::Store { path: path.display().to_string(), error }
}

/// Adds a model's weights to a hash, and those of its files that have one of `names`. Reads all of them.
fn weigh(hash: &mut Hasher, files: &ModelFiles, names: &[&str]) -> Result<()> {
    match files {
        ModelFiles::Dir(model) => {
            let entries = std::fs::read_dir(model).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            let entries = entries.map_err(|error| failed(model, error))?;
            let mut paths: Vec<_> = entries.iter().map(std::fs::DirEntry::path).collect();
            paths.retain(|path| {
                path.extension().is_some_and(|end| end == "safetensors")
                    || path.file_name().is_some_and(|name| names.iter().any(|known| name == *known))
            });
            paths.sort();
            for path in &paths {
                hash.update_mmap_rayon(path).map_err(|error| failed(path, error))?;
            }
        }
        ModelFiles::Embedded { files, .. } => {
            for (_, bytes) in *files {
                hash.update(bytes);
            }
        }
    }
    Ok(())
}

/// What tells a model's vectors from those of another one: a hash of its weights and of the files that say how it sees pictures and
/// texts. Reads all of them.
///
/// # Errors
/// If a file cannot be read.
pub fn model_hash(files: &ModelFiles) -> Result<String> {
    let mut hash = Hasher::new();
    weigh(
        &mut hash,
        files,
        &["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"],
    )?;
    Ok(hash.finalize().to_hex().to_string())
}

/// A directory of features, each in a safetensors file that is named by the hashes of the model and of the prepared picture. Processes
/// may share it. A file that is damaged counts as absent.
pub struct FeatureStore {
    dir: PathBuf,
}

impl FeatureStore {
    /// The part of `dir` that belongs to a model as it computes on a device. Reads all of its weights once.
    ///
    /// # Errors
    /// If the directory cannot be made, or a file of the model not read.
    pub fn open(dir: &Path, files: &ModelFiles, precision: Precision, backend: &str) -> Result<Self> {
        let mut hash = Hasher::new();
        hash.update(
            format!("{backend} {:?} {} {}", precision.dtype, precision.fast_int8, precision.fast_fp8)
                .as_bytes(),
        );
        weigh(&mut hash, files, &["config.json"])?;
        let dir = dir.join(&hash.finalize().to_hex()[..32]);
        std::fs::create_dir_all(&dir).map_err(|error| failed(&dir, error))?;
        Ok(Self { dir })
    }

    fn path(&self, picture: Key) -> PathBuf {
        self.dir.join(format!("{}.safetensors", blake3::Hash::from(picture).to_hex()))
    }

    /// Features of a picture, if they are there and whole.
    pub fn load(&self, cx: &mut Ctx, picture: Key) -> Option<Features> {
        let path = self.path(picture);
        let bytes = std::fs::read(&path).ok()?;
        let mut read = || -> Option<Features> {
            let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
            let file = SafeTensors::deserialize(&bytes).ok()?;
            let mut names: Vec<&str> = file.names();
            names.sort_unstable();
            let mut hash = Hasher::new();
            let mut features = Features::default();
            for name in names {
                let view = file.tensor(name).ok()?;
                hash.update(name.as_bytes()).update(view.data());
                let tensor = upload(cx, &view)?;
                match name {
                    "memory" => features.memory = Some(tensor),
                    "rows" => features.rows = Some(tensor),
                    _ => features.deep.push(tensor),
                }
            }
            let said = header.metadata().as_ref()?.get(HASH)?;
            (said.as_str() == hash.finalize().to_hex().as_str()).then_some(features)
        };
        let features = read();
        if features.is_none() {
            tracing::warn!("{}: damaged; it is made again", path.display());
        }
        features
    }

    /// Leaves features there. What fails is no failure of the request: it is told as a warning.
    pub fn save(&self, cx: &mut Ctx, picture: Key, features: &Features) {
        let path = self.path(picture);
        if let Err(error) = self.write(cx, &path, features) {
            tracing::warn!("{}: not written: {error}", path.display());
        }
    }

    fn write(&self, cx: &mut Ctx, path: &Path, features: &Features) -> Result<()> {
        let mut tensors = Vec::new();
        for (name, tensor) in features.named() {
            let view = cx.view(tensor)?;
            let mut bytes = vec![0; view.bytes() as usize];
            cx.stream().read(&view, &mut bytes)?;
            tensors.push((name, tensor.dtype(), tensor.shape().to_vec(), bytes));
        }
        tensors.sort();
        let mut hash = Hasher::new();
        for (name, .., bytes) in &tensors {
            hash.update(name.as_bytes()).update(bytes);
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            Ok((
                name,
                TensorView::new(stored(*dtype).ok_or_else(|| unlike(*dtype))?, shape.clone(), bytes)
                    .map_err(other)?,
            ))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let said = [(HASH.to_owned(), hash.finalize().to_hex().to_string())].into();
        let file = safetensors::serialize(views, Some(said)).map_err(other)?;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let new = path.with_extension(format!("{}-{number}.new", std::process::id()));
        let written = std::fs::write(&new, file).and_then(|()| std::fs::rename(&new, path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&new);
            Error::Store { path: new.display().to_string(), error }
        })
    }
}

fn other(error: impl std::fmt::Display) -> Error {
    Error::Request(error.to_string())
}

fn unlike(dtype: DType) -> Error {
    Error::Request(format!("features: expected floats, found {dtype}"))
}

fn stored(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::BF16 => Some(Dtype::BF16),
        DType::F16 => Some(Dtype::F16),
        _ => None,
    }
}

fn upload(cx: &mut Ctx, view: &TensorView<'_>) -> Option<Tensor> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => return None,
    };
    let tensor = cx.alloc_owned(view.shape(), dtype).ok()?;
    cx.stream().write(tensor.view(), view.data()).ok()?;
    Some(tensor)
}
