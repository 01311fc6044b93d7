//! The contract between ops, backends and streams, and the one list of ops.

use std::fmt;
use std::fmt::Debug;
use std::hash::Hash;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::buffer::{Storage, View, Weights};
use crate::ops::{
    Attention, GatherRows, Matmul, MergePatches, Norm, PatchEmbed, Pool, Rope, Sample, ScatterRows,
};
use crate::oracle::Oracle;
use crate::select::{Row, Variant};
use crate::spec::{Backend, Caps, Cost, KernelError, ShapeError};

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

    /// Arithmetic and traffic that no implementation can avoid.
    fn cost(&self) -> Cost;

    /// Calls `visit` with every view of the op, which may be replaced by one of the same shape and type.
    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View));

    /// The maths in f64, with an error bound for each output.
    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError>;

    /// Edge shapes and seeded random ones, on memory that `cx` allocates.
    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>>;
}

/// A CPU kernel of op `O`. The op's `spec()` has passed.
pub type CpuLaunch<O> = fn(&O, &crate::cpu::CpuCx) -> Result<(), KernelError>;

/// An op's kernels for the CPU.
pub trait CpuOp: Op {
    /// The rows, in table order.
    fn cpu_variants() -> &'static [Variant<Self::Spec, CpuLaunch<Self>>];
}

/// An op on every backend: what a caller needs to list and explain kernels without a device.
pub trait BackendOp: CpuOp {
    /// Each variant of `backend` with its reason or estimate.
    fn explain(backend: Backend, spec: &Self::Spec, caps: &Caps) -> Vec<Row>;
}

impl<O: CpuOp> BackendOp for O {
    fn explain(backend: Backend, spec: &Self::Spec, caps: &Caps) -> Vec<Row> {
        match backend {
            Backend::Cpu => crate::select::explain(O::cpu_variants(), spec, caps),
            Backend::Wgpu | Backend::Cuda => Vec::new(),
        }
    }
}

/// Runs op `O`. Ops of one stream happen in the order given.
pub trait Exec<O: Op> {
    /// Checks the op, chooses a variant and starts it.
    fn exec(&mut self, op: &O) -> Result<(), KernelError>;
}

/// Memory and order of one queue of work on a device.
pub trait Queue: Send {
    /// What the device can do.
    fn caps(&self) -> &Caps;

    /// Zeroed memory of this stream.
    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError>;

    /// Copies dense host bytes to a view.
    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError>;

    /// Waits for the work so far and copies a view to dense host bytes.
    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Weights in the form that this device's kernels want; the same memory where that is possible.
    fn place(&mut self, weights: &Weights) -> Result<Weights, KernelError> {
        Ok(weights.clone())
    }

    /// A read-only host view as memory of this device; the same memory where that is possible.
    fn place_view(&mut self, view: &View) -> Result<View, KernelError> {
        Ok(view.clone())
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

/// A device that can be opened.
pub trait Device: Send + Sync {
    /// What it can do.
    fn caps(&self) -> &Caps;

    /// A new queue of work.
    fn stream(&self) -> Result<Box<dyn Stream>, KernelError>;
}

/// Something done for each op of the list.
pub trait OpVisitor {
    /// Called once for each op.
    fn visit<O: BackendOp>(&mut self);
}

macro_rules! op_list {
    ($($op:ident),+ $(,)?) => {
        /// A queue that runs every op; used as `dyn Stream`.
        pub trait Stream: Queue $(+ Exec<$op>)+ {}
        impl<T: Queue $(+ Exec<$op>)+> Stream for T {}

        /// Names of all ops.
        pub const OP_NAMES: &[&str] = &[$(<$op as Op>::NAME),+];

        /// Calls `visitor` for each op of the list.
        pub fn for_each_op(visitor: &mut impl OpVisitor) {
            $(visitor.visit::<$op>();)+
        }
    };
}

op_list!(Matmul, Attention, PatchEmbed, Norm, Rope, GatherRows, ScatterRows, MergePatches, Pool, Sample);
