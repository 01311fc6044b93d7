//! What becomes of each tensor of the source, and which files the results lie in.

use ocelli_kernels::{DType, Format};

use super::layout::Tensors;
use super::writer::Item;
use super::{Layout, QuantizeError, QuantizeOptions, Role};
use crate::weights::{Checkpoint, Quantization, StoredType};

/// One thing to write, with its tensors in the output.
pub(super) enum Unit<'a> {
    Keep { name: &'a str, items: Vec<Item> },
    Module(Module<'a>),
}

/// A matrix that is quantized.
pub(super) struct Module<'a> {
    pub name: &'a str,
    pub role: Role,
    pub dtype: StoredType,
    pub n: usize,
    pub k: usize,
    pub format: Format,
    /// What every scale is multiplied with.
    pub factor: f32,
    pub tensors: Tensors,
}

impl Module<'_> {
    /// Whether [`factor`](Self::factor) depends on the weights.
    pub fn has_factor(&self, layout: Layout) -> bool {
        layout.has_factor() && self.format.grouped().is_some_and(|grouped| grouped.scale == DType::E4M3)
    }

    /// Bytes of a row as it is stored.
    pub fn row_bytes(&self) -> usize {
        self.k * self.dtype.bitsize() / 8
    }

    /// Takes another factor.
    pub fn set_factor(&mut self, factor: f32, layout: Layout) {
        self.factor = factor;
        if let Format::Grouped(grouped) = self.format {
            self.tensors = layout.tensors(self.name, self.n, self.k, grouped, factor);
        }
    }
}

impl Unit<'_> {
    pub fn items(&self) -> &[Item] {
        match self {
            Self::Keep { items, .. } | Self::Module(Module { tensors: Tensors { items, .. }, .. }) => items,
        }
    }
}

impl<'a> Unit<'a> {
    /// Bytes of it in the source.
    pub fn source_bytes(&self) -> u64 {
        match self {
            Self::Keep { items, .. } => items.iter().map(|item| item.bytes).sum(),
            Self::Module(module) => (module.n * module.row_bytes()) as u64,
        }
    }

    pub fn module(&self) -> Option<&Module<'a>> {
        match self {
            Self::Module(module) => Some(module),
            Self::Keep { .. } => None,
        }
    }

    /// The module of a matrix that stays as it is.
    pub fn kept_matrix(&self, checkpoint: &Checkpoint) -> Option<&'a str> {
        match self {
            Self::Keep { name, .. } => {
                let module = name.strip_suffix(".weight")?;
                checkpoint.info(name).filter(|info| info.shape.len() == 2).map(|_| module)
            }
            Self::Module(_) => None,
        }
    }
}

/// Decides for each tensor of the source.
pub(super) fn plan<'a>(
    checkpoint: &'a Checkpoint,
    role: &dyn Fn(&str) -> Option<Role>,
    options: &QuantizeOptions,
) -> Result<Vec<Unit<'a>>, QuantizeError> {
    let already = |how: String| QuantizeError::Already { path: checkpoint.path().to_owned(), how };
    if let Some(quantization) = checkpoint.quantization() {
        return Err(already(Quantization::to_string(quantization)));
    }
    let mut units = Vec::new();
    for (name, info) in checkpoint.infos() {
        if name.ends_with(".weight_packed") || name.ends_with(".qweight") {
            return Err(already(format!("it has `{name}`")));
        }
        let dtype = info.kernel_dtype().filter(|dtype| dtype.is_float());
        if let (Some(module), &[n, k], Some(dtype)) = (name.strip_suffix(".weight"), info.shape, dtype)
            && let Some(role) = role(module)
            && let Some(format) = options.format(role, k, dtype)
        {
            let Format::Grouped(grouped) = format else { continue };
            let tensors = options.layout.tensors(module, n, k, grouped, 1.0);
            let dtype = info.dtype;
            units.push(Unit::Module(Module {
                name: module,
                role,
                dtype,
                n,
                k,
                format,
                factor: 1.0,
                tensors,
            }));
        } else {
            let item = Item {
                name: name.to_owned(),
                dtype: info.dtype.to_string(),
                align: (info.dtype.bitsize() / 8).max(1) as u64,
                shape: info.shape.to_vec(),
                bytes: info.bytes as u64,
            };
            units.push(Unit::Keep { name, items: vec![item] });
        }
    }
    if units.iter().all(|unit| unit.module().is_none()) {
        return Err(QuantizeError::Nothing { path: checkpoint.path().to_owned(), tensors: units.len() });
    }
    Ok(units)
}

/// Runs of units that fill a file each; all tensors of a module lie in one.
pub(super) fn split<'a, 'b>(units: &'a [Unit<'b>], max: u64) -> Vec<&'a [Unit<'b>]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, unit) in units.iter().enumerate() {
        let more: u64 = unit.items().iter().map(|item| item.bytes).sum();
        if bytes + more > max && at > start {
            shards.push(&units[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    shards.push(&units[start..]);
    shards
}
