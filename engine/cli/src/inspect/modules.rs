//! The matrices of a model, one by one: how they are stored and what multiplies them.

use std::fmt::Write;

use ocelli_engine::weights::{Bank, Note};
use ocelli_kernels::ops::{Math, Matmul, MatmulSpec};
use ocelli_kernels::{BackendOp, Caps, DType, Format, Grouped};
use serde::Serialize;

use crate::units::bytes;

/// Rows of x that stand for a prompt.
const MANY: u32 = 256;

/// A matrix.
#[derive(Debug, Serialize)]
pub struct Module {
    name: String,
    /// Output and input features.
    shape: [usize; 2],
    /// How it is published, if it is quantized.
    source: Option<&'static str>,
    format: String,
    /// Bits of a weight, scales not counted.
    bits: usize,
    /// Weights that share a scale; none of floats.
    group: Option<usize>,
    bytes: u64,
    /// The kernels for one row of x and for many, or why there is none.
    kernels: [String; 2],
}

/// What `--reorder` would change of the matrices that lie along their output features in the file.
#[derive(Debug, Serialize)]
pub struct Reorder {
    /// How many there are.
    matrices: usize,
    /// Memory that they would take beside the file.
    bytes: u64,
    /// The kernels that multiply them as they lie, with one row of x and with many.
    kernels: [String; 2],
    /// Those that would.
    reordered: [String; 2],
    /// Those with --fast-int8.
    fast: [String; 2],
}

impl Reorder {
    /// Of a model's matrices; `None` if none lies so.
    pub fn of(modules: &[Module], caps: &Caps, dtype: DType) -> Option<Self> {
        let parsed = |module: &Module| module.format.parse::<Format>().ok();
        let along_n = |module: &&Module| matches!(parsed(module), Some(Format::KMajor(..)));
        let all: Vec<&Module> = modules.iter().filter(along_n).collect();
        let largest = all.iter().max_by_key(|module| module.bytes)?;
        let format = parsed(largest)?.reordered();
        let stored = |module: &&Module| {
            let [n, k] = module.shape;
            parsed(module).map_or(0, |format| format.reordered().bytes(n, k))
        };
        Some(Self {
            matrices: all.len(),
            bytes: all.iter().map(stored).sum(),
            kernels: largest.kernels.clone(),
            reordered: kernels(largest.shape, format, caps, dtype, Math::Exact),
            fast: kernels(largest.shape, format, caps, dtype, Math::Int8),
        })
    }

    /// In words.
    pub fn text(&self) -> String {
        let both = |[one, many]: &[String; 2]| {
            if one == many { one.clone() } else { format!("{one} and, many rows, {many}") }
        };
        format!(
            "{} matrices lie along their outputs in the file and are multiplied so, by {}; --reorder would store them anew, {} beside the file, for {}, with --fast-int8 {} (`ocelli bench kernels --published` measures both)",
            self.matrices,
            both(&self.kernels),
            bytes(self.bytes),
            both(&self.reordered),
            both(&self.fast)
        )
    }
}

/// The kernels for one row of x and for many, or why there is none.
fn kernels([n, k]: [usize; 2], w: Format, caps: &Caps, dtype: DType, math: Math) -> [String; 2] {
    [1, MANY].map(|m| {
        let (n, k) = (n as u32, k as u32);
        let spec = MatmulSpec { m, n, k, w, x: dtype, out: dtype, math, ..MatmulSpec::default() };
        match <Matmul as BackendOp>::explain(&spec, caps) {
            Ok(rows) => {
                let picked = rows.iter().find(|row| row.picked).map(|row| row.variant);
                picked.unwrap_or("none of the kernels takes it").to_owned()
            }
            Err(why) => why.to_owned(),
        }
    })
}

/// Those of what a model took, and those of experts that lie in tensors of all of them.
pub fn of(notes: Vec<Note>, banks: &[Bank], caps: &Caps, dtype: DType) -> Vec<Module> {
    let module = |note: Note| {
        let (shape, format) = (note.size?, note.format?);
        let parsed: Format = format.parse().ok()?;
        let [n, k] = shape;
        let bits = match parsed {
            Format::Dense(dtype) => 8 * dtype.size(),
            Format::Grouped(Grouped { code, .. }) | Format::KMajor(Grouped { code, .. }, _) => code.bits(),
        };
        let kernels = kernels([n, k], parsed, caps, dtype, Math::Exact);
        let group = parsed.codes().map(|_| parsed.group_len(k));
        Some(Module {
            name: note.module,
            shape,
            source: note.source,
            format,
            bits,
            group,
            bytes: note.bytes,
            kernels,
        })
    };
    let modules = notes.into_iter().filter(|note| note.matrix).filter_map(module);
    modules.chain(banks.iter().flat_map(|bank| of_bank(bank, caps, dtype))).collect()
}

/// Those of a parameter of all experts; modules of all have notes of their own.
fn of_bank(bank: &Bank, caps: &Caps, dtype: DType) -> Vec<Module> {
    if bank.tensor.ends_with(".weight") {
        return Vec::new();
    }
    let format = Format::Dense(bank.dtype);
    let mut modules = Vec::new();
    for (name, n) in &bank.projections {
        let shape = [*n, bank.k];
        let kernels = kernels(shape, format, caps, dtype, Math::Exact);
        modules.extend((0..bank.experts).map(|expert| Module {
            name: bank.module(expert, name),
            shape,
            source: None,
            format: format.to_string(),
            bits: 8 * bank.dtype.size(),
            group: None,
            bytes: (n * bank.k * bank.dtype.size()) as u64,
            kernels: kernels.clone(),
        }));
    }
    modules
}

/// A line for each, neighbours that differ by numbers alone as one.
pub fn table(modules: &[Module], text: &mut String) {
    let pattern = |name: &str| -> String {
        let part = |part: &str| {
            if part.bytes().all(|byte| byte.is_ascii_digit()) { "*".into() } else { part.to_owned() }
        };
        name.split('.').map(part).collect::<Vec<String>>().join(".")
    };
    let mut lines: Vec<(String, &Module, usize, u64)> = Vec::new();
    for module in modules {
        let name = pattern(&module.name);
        let same = |(of, other, ..): &&mut (String, &Module, usize, u64)| {
            *of == name
                && (&other.format, other.source, other.shape) == (&module.format, module.source, module.shape)
        };
        match lines.iter_mut().find(same) {
            Some((_, _, count, all)) => (*count, *all) = (*count + 1, *all + module.bytes),
            None => lines.push((name, module, 1, module.bytes)),
        }
    }
    let width = lines.iter().map(|(name, ..)| name.len()).max().unwrap_or(0).max(8);
    let _ = writeln!(
        text,
        "\n{:<width$} {:>5} {:>13} {:<14} {:>10}  kernels, published as",
        "matrix", "count", "shape", "format", "bytes"
    );
    for (name, Module { shape: [n, k], format, source, kernels: [one, many], .. }, count, all) in lines {
        let shape = format!("{n}x{k}");
        let source = source.map_or(String::new(), |source| format!("; {source}"));
        let kernels = if one == many { one.clone() } else { format!("{one}, {many}") };
        let _ = writeln!(
            text,
            "{name:<width$} {count:>5} {shape:>13} {format:<14} {:>10}  {kernels}{source}",
            bytes(all)
        );
    }
}
