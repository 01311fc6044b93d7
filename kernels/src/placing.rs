//! Placing weights: stored tensors of a stacked matrix as the one matrix that they are to a GPU, and what is placed already.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use crate::buffer::{HostBuf, Storage, View, WeightPart, Weights};
use crate::spec::{DType, Format, Grouped, KernelError, Zero};

/// A run of host rows of one plane.
pub(crate) struct Source<'a> {
    /// The plane.
    pub view: &'a View,
    /// Its rows.
    pub rows: Range<usize>,
}

/// Host rows by their identity: storage, byte offset, first and last row of each run.
type Identity = Vec<(usize, usize, usize, usize)>;

/// Runs of host rows, with the memory that they lie in.
pub(crate) struct HostRows {
    identity: Identity,
    owners: Vec<Weak<HostBuf>>,
}

impl HostRows {
    /// Errors if the rows are not in host memory.
    pub fn of(sources: &[Source<'_>]) -> Result<Self, KernelError> {
        let mut rows = Self { identity: Vec::new(), owners: Vec::new() };
        for Source { view, rows: range } in sources {
            let Storage::Host(owner) = view.storage() else {
                return Err(KernelError::WrongStorage { expected: "host", found: view.storage().kind() });
            };
            rows.identity.push((view.storage().id(), view.offset(), range.start, range.end));
            rows.owners.push(Arc::downgrade(owner));
        }
        Ok(rows)
    }
}

/// Host memory that is on a device already, in buffers `B`.
pub(crate) struct Placed<B> {
    known: HashMap<Identity, (Vec<Weak<HostBuf>>, Weak<B>)>,
}

impl<B> Default for Placed<B> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

impl<B> Placed<B> {
    /// The buffer of these rows, as long as that lives.
    pub fn find(&self, rows: &HostRows) -> Option<Arc<B>> {
        let (owners, buffer) = self.known.get(&rows.identity)?;
        // An address may be used again after its owner has gone: the known owners must still live.
        if owners.iter().all(|owner| owner.strong_count() > 0) { buffer.upgrade() } else { None }
    }

    /// Remembers a buffer.
    pub fn keep(&mut self, rows: HostRows, buffer: &Arc<B>) {
        self.known.insert(rows.identity, (rows.owners, Arc::downgrade(buffer)));
    }
}

/// A view as rows `[rows, cols]`.
pub(crate) fn flat(view: &View) -> Result<View, KernelError> {
    Ok(match view.layout().rank() {
        0 => view.reshape(&[1, 1])?,
        1 => view.reshape(&[1, view.len()])?,
        2 => view.clone(),
        _ => view.reshape(&[view.size(0), view.len() / view.size(0).max(1)])?,
    })
}

/// Parts that can become one: all of them, unless packed zero points of one would begin inside a word, or factors differ.
pub(crate) fn runs(weights: &Weights) -> Vec<&[WeightPart]> {
    let parts = weights.parts();
    let whole = |part: &WeightPart| match weights.format() {
        Format::Grouped(Grouped { code, zero: Zero::Codes, .. }) => {
            (part.rows * code.bits()).is_multiple_of(32)
        }
        _ => true,
    };
    let mut runs = Vec::new();
    let mut start = 0;
    for (i, part) in parts.iter().enumerate() {
        if !whole(part) || parts.get(i + 1).is_none_or(|next| next.factor != part.factor) {
            runs.push(&parts[start..=i]);
            start = i + 1;
        }
    }
    runs
}

/// The rows of each part that lie in `range`, counted in planes whose rows hold `pack` rows each.
pub(crate) fn sources<'a>(
    parts: &'a [WeightPart],
    range: &Range<usize>,
    pack: usize,
    plane: impl Fn(&'a WeightPart) -> &'a View,
) -> Vec<Source<'a>> {
    let (mut all, mut first) = (Vec::new(), 0);
    for part in parts {
        let (start, end) = (range.start.max(first), range.end.min(first + part.rows));
        if start < end {
            let rows = (start - first) / pack..(end - first).div_ceil(pack);
            all.push(Source { view: plane(part), rows });
        }
        first += part.rows;
    }
    all
}

/// How many rows of the matrix one row of a plane holds: several only for packed zero points.
pub(crate) fn rows_held(plane: &crate::spec::PlaneShape, n: usize) -> usize {
    if plane.name == "zeros" && plane.dtype == DType::I32 {
        n.div_ceil(plane.rows.max(1)).next_power_of_two()
    } else {
        1
    }
}

/// One bias for the rows: f32, zero where a part has none; `None` where no part has one.
pub(crate) fn biases(parts: &[WeightPart], range: &Range<usize>) -> Result<Option<Vec<f32>>, KernelError> {
    if parts.iter().all(|part| part.bias.is_none()) {
        return Ok(None);
    }
    let mut values: Vec<f32> = Vec::with_capacity(range.len());
    let mut first = 0;
    for part in parts {
        let (start, end) = (range.start.max(first), range.end.min(first + part.rows));
        for row in start..end.max(start) {
            values.push(part.bias.as_ref().map_or(Ok(0.0), |bias| bias.host_value(row - first))?);
        }
        first += part.rows;
    }
    Ok(Some(values))
}
