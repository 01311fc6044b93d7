//! Rows of several sequences one after another, each with a state that outlives the pass.

use super::check;
use super::index::Indices;
use crate::buffer::View;
use crate::cpu::CpuCx;
use crate::op::Access;
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, ShapeError};

/// Where the rows of sequences and their states are.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// i32 `[seqs + 1]`: first row of each sequence, and at the end the number of rows.
    pub starts: View,
    /// i32 `[seqs]`: tokens of each sequence, these rows included. Where all of them are here, the state before is zeros,
    /// whatever its slot holds.
    pub lens: View,
    /// i32 `[seqs]`: slot of each sequence's state, all different; negative where there is none: it begins with zeros and is
    /// not kept.
    pub slots: View,
    /// Most rows of one sequence.
    pub most: usize,
}

/// One of [`Sequences`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// First row.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// Slot that the state goes to.
    pub slot: Option<usize>,
    /// Whether the slot holds the state before.
    pub goes_on: bool,
}

impl Sequence {
    /// Slot that the state before is in; `None`: it is zeros.
    pub(super) fn old(&self) -> Option<usize> {
        self.slot.filter(|_| self.goes_on)
    }
}

impl Sequences {
    /// Sequences.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Checks types and shapes, and that no output shares memory with them.
    pub(super) fn check(&self, outputs: &[(&str, &View)]) -> Result<(), ShapeError> {
        let Self { starts, lens, slots, .. } = self;
        let all = [("starts", starts), ("lens", lens), ("slots", slots)];
        for (name, view) in all {
            check::rank(name, view, 1)?;
            check::dtype(name, view, DType::I32)?;
        }
        check::shape("starts", starts, &[slots.size(0) + 1])?;
        check::shape("lens", lens, &[slots.size(0)])?;
        outputs.iter().try_for_each(|(name, out)| check::output(name, out, all))
    }

    pub(super) fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        for view in [&mut self.starts, &mut self.lens, &mut self.slots] {
            visit(Access::In, view);
        }
    }

    /// `seqs` sequences of nearly equal length that go on from states in slots of their own.
    pub(super) fn of_spec(
        rows: usize,
        seqs: usize,
        most: usize,
        operands: &mut dyn Operands,
    ) -> Result<Self, KernelError> {
        let count = seqs.max(1);
        Ok(Self {
            starts: operands.ints(&[seqs + 1], &|i| (i * rows / count) as i32)?,
            lens: operands.ints(&[seqs], &|_| i32::MAX)?,
            slots: operands.ints(&[seqs], &|i| i as i32)?,
            most,
        })
    }

    /// The values on the host.
    pub(super) fn on_host(
        &self,
        cx: &CpuCx,
        op: &'static str,
        rows: usize,
        slots: usize,
    ) -> Result<Vec<Sequence>, KernelError> {
        let list = |view| -> Result<Vec<i64>, KernelError> {
            Ok(Indices::new(cx, view)?.iter().map(i64::from).collect())
        };
        checked(op, &list(&self.starts)?, &list(&self.lens)?, &list(&self.slots)?, rows, slots)
    }

    /// The values for a reference.
    pub(super) fn exact(
        &self,
        io: &Oracle,
        op: &'static str,
        rows: usize,
        slots: usize,
    ) -> Result<Vec<Sequence>, KernelError> {
        let (starts, lens, of) = (io.ints(&self.starts)?, io.ints(&self.lens)?, io.ints(&self.slots)?);
        checked(op, &starts, &lens, &of, rows, slots)
    }
}

fn checked(
    op: &'static str,
    starts: &[i64],
    lens: &[i64],
    slots: &[i64],
    rows: usize,
    limit: usize,
) -> Result<Vec<Sequence>, KernelError> {
    let outside = |what, index, limit| Err(KernelError::Index { op, what, index, limit });
    if let Some(&first) = starts.first().filter(|&&first| first != 0) {
        return outside("first row", first, 1);
    }
    let mut all = Vec::with_capacity(slots.len());
    for ((pair, &len), &slot) in starts.windows(2).zip(lens).zip(slots) {
        if pair[1] < pair[0] || pair[1] as usize > rows {
            return outside("row", pair[1], rows + 1);
        }
        if slot >= limit as i64 {
            return outside("slot", slot, limit);
        }
        let (first, rows) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        all.push(Sequence { first, rows, slot: usize::try_from(slot).ok(), goes_on: len > rows as i64 });
    }
    match starts.last() {
        Some(&end) if end as usize != rows => outside("row after the last", end, rows + 1),
        _ => Ok(all),
    }
}
