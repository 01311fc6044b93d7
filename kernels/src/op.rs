//! The contract between ops, queues of work and devices.

use std::fmt;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::buffer::{Storage, View, Weights};
use crate::operands::Operands;
use crate::ops::Stream;
use crate::oracle::Oracle;
use crate::select::Picks;
use crate::spec::{Caps, Cost, KernelError, ShapeError};

/// How an op uses a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    In,
    /// Every addressed element is written, none is read before.
    Out,
    /// Read and written in place, or written in part.
    InOut,
}

/// An operation with its operands.
pub trait Op: Clone + Send + 'static {
    /// Name in specs, records and errors.
    const NAME: &'static str;

    /// Sizes, formats and flags: the key under which variants are chosen, tuned and recorded. Sizes that change from
    /// step to step enter as [buckets](crate::spec::bucket).
    type Spec: Copy + Eq + Hash + Debug + Default + Serialize + DeserializeOwned + Send + Sync;

    /// The only check of shapes, formats and aliasing.
    fn spec(&self) -> Result<Self::Spec, ShapeError>;

    /// Whether a device may have no kernel for it: its work may also be given as several ops, see [`Exec::accepts`].
    fn is_optional(&self) -> bool {
        false
    }

    /// The spec with as few and with as many rows and sequences as batches have, and everything else alike. The one variant
    /// that serves a spec [whatever else is in its batch](Caps::batch_invariant) runs both, and is the fastest for many.
    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [*spec; 2]
    }

    /// Arithmetic and traffic that no implementation can avoid.
    fn cost(&self) -> Cost;

    /// Calls `visit` with every view of the op, which may be replaced by one of the same shape and type.
    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View));

    /// Its weight matrix, which a device may want in another form: see [`Queue::place`].
    fn weights(&mut self) -> Option<&mut Weights> {
        None
    }

    /// The op of this spec on operands that `operands` gives: for benchmarks and for measured choices.
    fn of_spec(spec: &Self::Spec, operands: &mut dyn Operands) -> Result<Self, KernelError>;

    /// Ops on parts of the operands and results of this one that are to be checked: all of it, or, where the f64 reference
    /// of all would take too long, some blocks.
    fn parts(&self) -> Result<Vec<Self>, KernelError> {
        Ok(vec![self.clone()])
    }

    /// The maths in f64, with an error bound for each output.
    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError>;

    /// Edge shapes and seeded random ones, on memory that `cx` allocates.
    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>>;
}

/// Runs op `O`. Ops of one stream happen in the order given.
pub trait Exec<O: Op> {
    /// Checks the op, chooses a variant and starts it.
    fn exec(&mut self, op: &O) -> Result<(), KernelError>;

    /// Whether a variant of this device takes the op: for what may also be done in several steps. Costs little against a
    /// launch: callers may ask each time.
    fn accepts(&self, op: &O) -> bool;
}

/// Bytes on their way from a device to the host.
pub trait Fetch: Send {
    /// Waits for them: the elements of the view, dense.
    fn wait(self: Box<Self>) -> Result<Vec<u8>, KernelError>;
}

impl Fetch for Vec<u8> {
    fn wait(self: Box<Self>) -> Result<Vec<u8>, KernelError> {
        Ok(*self)
    }
}

/// Launches that a device noted; what it is belongs to the device.
pub type Recorded = Arc<dyn std::any::Any + Send + Sync>;

/// Memory and order of one queue of work on a device.
pub trait Queue: Send {
    /// What the device can do.
    fn caps(&self) -> &Caps;

    /// Zeroed memory of this stream.
    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError>;

    /// The same, much of which may never be written: where the system allows it, what is not takes no memory.
    fn reserve(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        self.alloc(bytes)
    }

    /// Copies dense host bytes to a view.
    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError>;

    /// Waits for the work so far and copies a view to dense host bytes.
    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Starts to copy a view to the host once the work so far is done. Work that is given to the queue meanwhile goes on,
    /// where the device works beside the host.
    fn fetch(&mut self, from: &View) -> Result<Box<dyn Fetch>, KernelError> {
        let mut bytes = vec![0; from.bytes() as usize];
        self.read(from, &mut bytes)?;
        Ok(Box::new(bytes))
    }

    /// Whether the device works beside the host, so that it pays to prepare work before the results of earlier work are known.
    fn overlaps(&self) -> bool {
        false
    }

    /// Time that the host took to prepare ops for a device that works beside it, compilation left out; zero where the host
    /// does the work.
    fn host_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Time that compiling kernels took.
    fn compile_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Weights in the form that this device's kernels want; the same memory where that is possible.
    fn place(&mut self, weights: &Weights) -> Result<Weights, KernelError> {
        Ok(weights.clone())
    }

    /// A read-only host view as memory of this device; the same memory where that is possible.
    fn place_view(&mut self, view: &View) -> Result<View, KernelError> {
        Ok(view.clone())
    }

    /// Whether launches can be [recorded](Self::record).
    fn records(&self) -> bool {
        false
    }

    /// Notes launches from here on instead of running them, up to [`recorded`](Self::recorded). What runs between the two must
    /// neither allocate, nor copy, nor wait.
    fn record(&mut self) -> Result<(), KernelError> {
        Err(KernelError::Device("this device records no launches".into()))
    }

    /// What was noted since [`record`](Self::record).
    fn recorded(&mut self) -> Result<Recorded, KernelError> {
        Err(KernelError::Device("this device records no launches".into()))
    }

    /// Runs noted launches, on the memory that they were noted with.
    fn replay(&mut self, recorded: &Recorded) -> Result<(), KernelError> {
        let _ = recorded;
        Err(KernelError::Device("this device records no launches".into()))
    }

    /// Waits until all work is done.
    fn sync(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Names the module whose ops follow, for plans and traces.
    fn scope(&mut self, name: fmt::Arguments<'_>) {
        let _ = name;
    }

    /// Ends what the last [`scope`](Self::scope) began.
    fn end_scope(&mut self) {}
}

/// Work of which only the kernels that it asks for are wanted.
pub type Rehearsal = Box<dyn FnOnce(&dyn Device) + Send>;

/// A device that can be opened.
pub trait Device: Send + Sync {
    /// What it can do.
    fn caps(&self) -> &Caps;

    /// A new queue of work.
    fn stream(&self) -> Result<Box<dyn Stream>, KernelError>;

    /// Sets the choices of variants that come before estimates, in the queues that are made from now on.
    fn prefer(&mut self, picks: Picks);

    /// Prepares kernels beside the caller: `rehearse` runs on another thread, on a device of the same kind that computes and
    /// stores nothing, and the kernels that it asks for are compiled. Where kernels are no work to prepare it is not run.
    fn warm_up(&self, rehearse: Rehearsal) {
        drop(rehearse);
    }
}
