//! The parameters of a model in one buffer of f32, in the layout of a safetensors file.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::tape::Trained;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_engine::{Ctx, Error, Result};
use ocelli_kernels::{DType, Layout, Storage, View};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::fresh::Fresh;

/// Bytes that the data of a file in memory begin at a multiple of: vector registers.
const ALIGN: usize = 64;

/// One tensor of a model.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// Its bytes in the buffer.
    pub bytes: Range<usize>,
    /// The type that the checkpoint has it in.
    pub stored: DType,
    /// Whether it is trained.
    pub trained: bool,
}

impl Parameter {
    /// Whether weight decay acts on it: matrices and filters, not biases and the weights of norms.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / size_of::<f32>()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// All parameters of a model, and their gradients.
pub struct Parameters {
    all: Vec<Parameter>,
    values: Storage,
    grads: Storage,
}

impl Parameters {
    /// Reads the weights of a checkpoint as f32 into memory of the context; `chosen` says by name which are trained. The second result
    /// is a checkpoint of that memory: a model that is loaded from it computes with what is trained.
    ///
    /// # Errors
    /// If a tensor is no plain float (quantized weights are not trained), or nothing is chosen.
    pub fn read(
        cx: &mut Ctx,
        files: &ModelFiles,
        source: &Checkpoint,
        chosen: &dyn Fn(&str) -> bool,
    ) -> Result<(Self, Checkpoint)> {
        Self::read_beside(cx, files, source, chosen, &[])
    }

    /// As [`read`](Self::read), with fresh tensors that the model has no part of and which are trained beside it: their names, shapes and
    /// values.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_beside(
        cx: &mut Ctx,
        files: &ModelFiles,
        source: &Checkpoint,
        chosen: &dyn Fn(&str) -> bool,
        beside: &[(String, Vec<usize>, Vec<f32>)],
    ) -> Result<(Self, Checkpoint)> {
        let mut all = Vec::new();
        for (name, info) in source.infos() {
            let stored = match info.dtype {
                Dtype::F32 => DType::F32,
                Dtype::BF16 => DType::BF16,
                Dtype::F16 => DType::F16,
                // Buffers that old checkpoints keep, such as the numbers of positions.
                Dtype::I64 if name.ends_with("position_ids") => continue,
                other => {
                    return Err(Error::Train(format!(
                        "{}: tensor `{name}`: expected F32, BF16 or F16 to train, found {other}",
                        source.path()
                    )));
                }
            };
            all.push(Parameter {
                name: name.to_owned(),
                shape: info.shape.to_vec(),
                bytes: 0..info.len() * size_of::<f32>(),
                stored,
                trained: chosen(name),
            });
        }
        let fresh = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| Parameter {
            name: name.clone(),
            shape: shape.clone(),
            bytes: 0..size_of_val(&values[..]),
            stored: DType::F32,
            trained: true,
        };
        all.extend(beside.iter().map(fresh));
        let values = |parameter: &Parameter| match beside.iter().find(|(name, ..)| *name == parameter.name) {
            Some((_, _, values)) => Ok(values.clone()),
            None => Ok(source.floats(&parameter.name)?),
        };
        let (parameters, file) = Self::place(cx, source.path(), all, values)?;
        Ok((parameters, with_config(files, file)?))
    }

    /// Fresh weights of a model that has these tensors, see [`Fresh`]; f32. The second result is as that of [`read`](Self::read).
    ///
    /// # Errors
    /// If nothing is chosen.
    pub fn fresh(
        cx: &mut Ctx,
        files: &ModelFiles,
        tensors: &[(String, Vec<usize>)],
        fresh: &Fresh,
        chosen: &dyn Fn(&str) -> bool,
    ) -> Result<(Self, Checkpoint)> {
        let parameter = |(name, shape): &(String, Vec<usize>)| Parameter {
            name: name.clone(),
            shape: shape.clone(),
            bytes: 0..shape.iter().product::<usize>() * size_of::<f32>(),
            stored: DType::F32,
            trained: chosen(name),
        };
        let all = tensors.iter().map(parameter).collect();
        let label = files.describe("model.safetensors");
        let (parameters, file) =
            Self::place(cx, &label, all, |parameter| Ok(fresh.values(&parameter.name, &parameter.shape)))?;
        Ok((parameters, with_config(files, file)?))
    }

    /// Lays parameters out one after another, each with the bytes that it needs, and gives the file that they are.
    ///
    /// # Errors
    /// If none is trained, or values cannot be had.
    pub fn place(
        cx: &mut Ctx,
        label: &str,
        mut all: Vec<Parameter>,
        values: impl Fn(&Parameter) -> Result<Vec<f32>>,
    ) -> Result<(Self, TensorFile)> {
        if !all.iter().any(|parameter| parameter.trained) {
            return Err(Error::Train("no parameter is chosen to be trained".into()));
        }
        let mut file = header(&all, |_| "F32");
        let mut end = file.len();
        for parameter in &mut all {
            parameter.bytes = end..end + parameter.bytes.len();
            end = parameter.bytes.end;
        }
        file.reserve_exact(end - file.len());
        for parameter in &all {
            file.extend(values(parameter)?.iter().flat_map(|value| value.to_le_bytes()));
        }
        let file: Arc<[u8]> = file.into();
        let (values, grads) = (cx.stream().alloc(file.len())?, cx.stream().alloc(file.len())?);
        cx.stream().write(&View::dense(values.clone(), &[file.len()], DType::U8)?, &file)?;
        let file = TensorFile::placed(label, file, values.clone())?;
        Ok((Self { all, values, grads }, file))
    }

    /// The parameters, in the order of the buffer.
    #[must_use]
    pub fn all(&self) -> &[Parameter] {
        &self.all
    }

    /// Numbers that are trained.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.iter().filter(|parameter| parameter.trained).map(Parameter::len).sum()
    }

    /// Values and gradients for a tape.
    #[must_use]
    pub fn trained(&self) -> Trained {
        let ranges = self.runs(|parameter| parameter.trained.then_some(()));
        Trained {
            values: self.values.clone(),
            grads: self.grads.clone(),
            ranges: ranges.into_iter().map(|(range, ())| range).collect(),
        }
    }

    /// Bytes of neighbouring parameters that are of one kind.
    pub(crate) fn runs<K: PartialEq>(
        &self,
        kind: impl Fn(&Parameter) -> Option<K>,
    ) -> Vec<(Range<usize>, K)> {
        let mut runs: Vec<(Range<usize>, K)> = Vec::new();
        for parameter in &self.all {
            let Some(kind) = kind(parameter) else { continue };
            match runs.last_mut() {
                Some((range, last)) if range.end == parameter.bytes.start && *last == kind => {
                    range.end = parameter.bytes.end;
                }
                _ => runs.push((parameter.bytes.clone(), kind)),
            }
        }
        runs
    }

    /// Bytes of the buffer, and of one beside it.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        self.values.len()
    }

    /// All values as bytes, for what is to come back to them.
    pub(crate) fn storage(&self) -> &Storage {
        &self.values
    }

    /// A parameter where it lies, in its shape.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn view(&self, name: &str) -> Result<View> {
        let parameter = self.find(name)?;
        Ok(self.values(&parameter.bytes)?.reshape(&parameter.shape)?)
    }

    /// Some of the values, flat.
    pub(crate) fn values(&self, bytes: &Range<usize>) -> Result<View> {
        flat(&self.values, bytes)
    }

    /// Some of the gradients, flat.
    pub(crate) fn grads(&self, bytes: &Range<usize>) -> Result<View> {
        flat(&self.grads, bytes)
    }

    /// The gradient of a parameter by name, as far as it has been added up.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn gradient(&self, cx: &mut Ctx, name: &str) -> Result<Vec<f32>> {
        let view = self.grads(&self.find(name)?.bytes)?;
        download(cx, &view)
    }

    /// A parameter by name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn value(&self, cx: &mut Ctx, name: &str) -> Result<Vec<f32>> {
        let view = self.values(&self.find(name)?.bytes)?;
        download(cx, &view)
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Parameter> {
        let found = self.all.iter().find(|parameter| parameter.name == name);
        found.ok_or_else(|| Error::Train(format!("no parameter is called `{name}`")))
    }

    /// Writes the parameters to a safetensors file, each in the type that the checkpoint had it in.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, cx: &mut Ctx, path: &Path) -> Result<()> {
        self.save_those(cx, path, &|_| true)
    }

    /// As [`save`](Self::save), those alone that are chosen by name.
    ///
    /// # Errors
    /// If the file cannot be written; nothing is left of it then.
    pub fn save_those(&self, cx: &mut Ctx, path: &Path, chosen: &dyn Fn(&str) -> bool) -> Result<()> {
        let those: Vec<Parameter> =
            self.all.iter().filter(|parameter| chosen(&parameter.name)).cloned().collect();
        let written = write(
            &those,
            path,
            |parameter| parameter.stored,
            |parameter| {
                let view = self.values(&parameter.bytes)?;
                download(cx, &view)
            },
        );
        if written.is_err() {
            let _ = std::fs::remove_file(path);
        }
        written
    }
}

fn write(
    all: &[Parameter],
    path: &Path,
    stored: impl Fn(&Parameter) -> DType,
    mut values: impl FnMut(&Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    let io = |error| Error::Store { path: path.display().to_string(), error };
    let file = std::fs::File::create(path).map_err(io)?;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
    let header = header(all, |parameter| match stored(parameter) {
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        _ => "F32",
    });
    file.write_all(&header).map_err(io)?;
    for parameter in all {
        let values = values(parameter)?;
        let bytes: Vec<u8> = match stored(parameter) {
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        file.write_all(&bytes).map_err(io)?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

/// A file as the checkpoint of a model, with what its configuration says of it.
fn with_config(files: &ModelFiles, file: TensorFile) -> Result<Checkpoint> {
    let placed = Checkpoint::of_file(file);
    Ok(match files.json::<Value>("config.json")? {
        Some(config) => placed.with_config(&config),
        None => placed,
    })
}

/// The header of a safetensors file with these tensors one after another, its length a multiple of [`ALIGN`].
fn header(all: &[Parameter], dtype: impl Fn(&Parameter) -> &'static str) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for parameter in all {
        let dtype = dtype(parameter);
        let bytes = parameter.len() * if dtype == "F32" { 4 } else { 2 };
        let entry = json!({"dtype": dtype, "shape": parameter.shape, "data_offsets": [end, end + bytes]});
        entries.insert(parameter.name.clone(), entry);
        end += bytes;
    }
    let mut text = Value::Object(entries).to_string();
    while !(8 + text.len()).is_multiple_of(ALIGN) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.into_bytes());
    header
}

/// Some bytes of a buffer as f32.
pub(crate) fn flat(storage: &Storage, bytes: &Range<usize>) -> Result<View> {
    let layout = Layout::dense(&[bytes.len() / size_of::<f32>()])?;
    Ok(View::new(storage.clone(), bytes.start, layout, DType::F32)?)
}

/// The values of a flat view.
pub(crate) fn download(cx: &mut Ctx, view: &View) -> Result<Vec<f32>> {
    let mut values = vec![0f32; view.len()];
    cx.stream().read(view, bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}
