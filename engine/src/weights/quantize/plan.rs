//! What becomes of each tensor of the source, and which files the results lie in.

use std::collections::{HashMap, HashSet};

use ocelli_kernels::{DType, Format};

use super::layout::Tensors;
use super::writer::Item;
use super::{Anatomy, Layout, QuantizeError, QuantizeOptions, Role};
use crate::weights::{Bank, Checkpoint, Quantization, StoredType, TensorInfo};

/// One thing to write, with its tensors in the output.
pub(super) enum Unit<'a> {
    Keep {
        name: &'a str,
        items: Vec<Item>,
    },
    Module(Module<'a>),
    /// Matrices that follow each other in tensors of all of them.
    Stack {
        /// The module of all.
        name: String,
        items: Vec<Item>,
        modules: Vec<Module<'a>>,
    },
}

/// Where the source has a matrix.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub tensor: &'a str,
    /// Elements before its first.
    pub first: usize,
    /// Where rows and columns are exchanged, elements from one column to the next.
    pub turned: Option<usize>,
}

/// A matrix that is quantized.
pub(super) struct Module<'a> {
    pub name: String,
    pub source: Source<'a>,
    /// Its number in [`tensors`](Self::tensors), which hold several.
    pub number: usize,
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
            self.tensors = layout.tensors(&self.name, self.n, self.k, grouped, factor);
        }
    }
}

impl Unit<'_> {
    pub fn items(&self) -> &[Item] {
        match self {
            Self::Keep { items, .. }
            | Self::Module(Module { tensors: Tensors { items, .. }, .. })
            | Self::Stack { items, .. } => items,
        }
    }
}

impl<'a> Unit<'a> {
    /// Bytes of it in the source.
    pub fn source_bytes(&self) -> u64 {
        match self {
            Self::Keep { items, .. } => items.iter().map(|item| item.bytes).sum(),
            Self::Module(_) | Self::Stack { .. } => {
                self.modules().iter().map(|module| (module.n * module.row_bytes()) as u64).sum()
            }
        }
    }

    /// The matrices that it is of.
    pub fn modules(&self) -> &[Module<'a>] {
        match self {
            Self::Module(module) => std::slice::from_ref(module),
            Self::Stack { modules, .. } => modules,
            Self::Keep { .. } => &[],
        }
    }

    /// The module that its tensors are of, and its format.
    pub fn stored(&self) -> Option<(&str, Format)> {
        let format = self.modules().first()?.format;
        match self {
            Self::Module(module) => Some((&module.name, format)),
            Self::Stack { name, .. } => Some((name, format)),
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
            Self::Module(_) | Self::Stack { .. } => None,
        }
    }
}

/// Banks whose matrices are quantized, by tensor, each with its format and type; all of a layer's, as they are read as one or the other.
type Taken<'a> = HashMap<&'a str, (&'a Bank, Format)>;

/// Decides for tensors of all experts, and tells which stay as they are.
fn take<'a>(
    checkpoint: &Checkpoint,
    banks: &'a [Bank],
    options: &QuantizeOptions,
) -> (Taken<'a>, Vec<String>) {
    let format = |bank: &Bank| {
        let role = bank.role.filter(|role| *role != Role::Painter)?;
        let dtype = checkpoint.info(&bank.tensor)?.kernel_dtype().filter(|dtype| dtype.is_float())?;
        options.format(role, bank.k, dtype)
    };
    let mut taken: Taken<'a> =
        banks.iter().filter_map(|bank| Some((bank.tensor.as_str(), (bank, format(bank)?)))).collect();
    let left: Vec<&Bank> = banks.iter().filter(|bank| !taken.contains_key(bank.tensor.as_str())).collect();
    let layers: HashSet<&str> = left.iter().map(|bank| bank.single.as_str()).collect();
    taken.retain(|_, (bank, _)| !layers.contains(bank.single.as_str()));
    let note = left.first().map(|bank| {
        format!(
            "experts of {} layers stay as they are: rows of {} weights (`{}`) fit no {} of this layout",
            layers.len(),
            bank.k,
            bank.tensor,
            options.scheme.name()
        )
    });
    (taken, note.into_iter().collect())
}

/// The units of a tensor of all experts: a module for each projection of each, or, in MLX's layout, one for a projection of all.
fn of_bank<'a>(
    tensor: &'a str,
    info: TensorInfo<'_>,
    bank: &Bank,
    format: Format,
    layout: Layout,
) -> Vec<Unit<'a>> {
    let Format::Grouped(grouped) = format else { return Vec::new() };
    let (k, all) = (bank.k, bank.rows());
    let mut units = Vec::new();
    let mut before = 0;
    for (projection, n) in &bank.projections {
        let stack = format!("{}.{projection}", bank.stack);
        let module = |expert: usize| {
            let name = bank.module(expert, projection);
            let own = if layout.stacks_experts() { &stack } else { &name };
            let first = expert * all * k + if bank.turned { before } else { before * k };
            Module {
                tensors: layout.tensors(own, *n, k, grouped, 1.0),
                name,
                source: Source { tensor, first, turned: bank.turned.then_some(all) },
                number: if layout.stacks_experts() { expert } else { 0 },
                role: bank.role.unwrap_or(Role::Decoder),
                dtype: info.dtype,
                n: *n,
                k,
                format,
                factor: 1.0,
            }
        };
        let modules: Vec<Module<'a>> = (0..bank.experts).map(module).collect();
        match modules.first().filter(|_| layout.stacks_experts()) {
            Some(first) => {
                let of_all = |item: &Item| Item {
                    shape: [bank.experts].iter().chain(&item.shape).copied().collect(),
                    bytes: item.bytes * bank.experts as u64,
                    ..item.clone()
                };
                let items = first.tensors.items.iter().map(of_all).collect();
                units.push(Unit::Stack { name: stack, items, modules });
            }
            None => units.extend(modules.into_iter().map(Unit::Module)),
        }
        before += n;
    }
    units
}

/// Decides for each tensor of the source; and what is to be said of it.
pub(super) fn plan<'a>(
    checkpoint: &'a Checkpoint,
    anatomy: Anatomy<'_>,
    options: &QuantizeOptions,
) -> Result<(Vec<Unit<'a>>, Vec<String>), QuantizeError> {
    let (banks, notes) = take(checkpoint, anatomy.banks, options);
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
            && let Some(role) = (anatomy.role)(module)
            && let Some(format) = options.format(role, k, dtype)
        {
            let Format::Grouped(grouped) = format else { continue };
            let tensors = options.layout.tensors(module, n, k, grouped, 1.0);
            let dtype = info.dtype;
            units.push(Unit::Module(Module {
                name: module.to_owned(),
                source: Source { tensor: name, first: 0, turned: None },
                number: 0,
                role,
                dtype,
                n,
                k,
                format,
                factor: 1.0,
                tensors,
            }));
        } else if let Some((bank, format)) = banks.get(name) {
            units.extend(of_bank(name, info, bank, *format, options.layout));
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
    if units.iter().all(|unit| unit.modules().is_empty()) {
        return Err(QuantizeError::Nothing { path: checkpoint.path().to_owned(), tensors: units.len() });
    }
    Ok((units, notes))
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
