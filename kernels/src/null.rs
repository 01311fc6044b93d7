//! The stream that checks and counts but computes nothing: dry runs and plans.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};

use crate::buffer::{Storage, View};
use crate::op::{Exec, Queue};
use crate::ops::BackendOp;
use crate::spec::{Caps, Cost, KernelError, text};

/// One op that a dry run met.
#[derive(Clone, Debug)]
pub struct NullRecord {
    /// Module path given through [`Queue::scope`].
    pub scope: String,
    /// Name of the op.
    pub op: &'static str,
    /// Its spec in the text form.
    pub spec: String,
    /// The variant that would run it, or every variant's reason not to.
    pub variant: Result<&'static str, String>,
    /// Arithmetic and traffic.
    pub cost: Cost,
    /// Bytes of operands that are in memory even in a dry run: weights.
    pub weights: u64,
}

/// What a dry run noted; clones share it.
#[derive(Clone, Debug, Default)]
pub struct NullLog(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    records: Vec<NullRecord>,
    allocated: usize,
}

impl NullLog {
    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes the ops so far, in order.
    #[must_use]
    pub fn take(&self) -> Vec<NullRecord> {
        std::mem::take(&mut self.noted().records)
    }

    /// The sum over all ops so far.
    #[must_use]
    pub fn total(&self) -> Cost {
        self.noted().records.iter().fold(Cost::default(), |sum, record| sum + record.cost)
    }

    /// Bytes that were asked for.
    #[must_use]
    pub fn allocated(&self) -> usize {
        self.noted().allocated
    }
}

/// Checks each op, notes its cost and the variant that would be picked. Its memory is [`Storage::Meta`].
pub struct NullStream {
    caps: Caps,
    scope: Vec<String>,
    log: NullLog,
}

impl NullStream {
    /// A dry run for a device with these capabilities.
    #[must_use]
    pub fn new(caps: Caps) -> Self {
        Self { caps, scope: Vec::new(), log: NullLog::default() }
    }

    /// What the run notes.
    #[must_use]
    pub fn log(&self) -> NullLog {
        self.log.clone()
    }
}

impl Queue for NullStream {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        self.log.noted().allocated += bytes;
        Ok(Storage::Meta(bytes))
    }

    fn write(&mut self, _to: &View, _bytes: &[u8]) -> Result<(), KernelError> {
        Ok(())
    }

    fn read(&mut self, _from: &View, bytes: &mut [u8]) -> Result<(), KernelError> {
        bytes.fill(0);
        Ok(())
    }

    fn scope(&mut self, name: fmt::Arguments<'_>) {
        let mut text = self.scope.last().cloned().unwrap_or_default();
        if !text.is_empty() {
            text.push('.');
        }
        let _ = text.write_fmt(name);
        self.scope.push(text);
    }

    fn end_scope(&mut self) {
        self.scope.pop();
    }
}

impl<O: BackendOp> Exec<O> for NullStream {
    fn exec(&mut self, op: &O) -> Result<(), KernelError> {
        let spec = op.spec().map_err(|error| error.of_op(O::NAME))?;
        let variant = match O::explain(&spec, &self.caps) {
            Ok(rows) => {
                let picked = rows.iter().find(|row| row.picked).map(|row| row.variant);
                picked.ok_or_else(|| crate::select::why_not(&rows))
            }
            Err(why) => Err(why.to_owned()),
        };
        let mut weights = 0;
        op.clone().visit(&mut |_, view| {
            if !matches!(view.storage(), Storage::Meta(_)) {
                weights += view.bytes();
            }
        });
        self.log.noted().records.push(NullRecord {
            scope: self.scope.last().cloned().unwrap_or_default(),
            op: O::NAME,
            spec: text::write(&spec),
            variant,
            cost: op.cost(),
            weights,
        });
        Ok(())
    }

    fn accepts(&self, op: &O) -> bool {
        op.spec().is_ok_and(|spec| O::runs(&spec, &self.caps))
    }
}
