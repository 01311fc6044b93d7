//! The contract between ops, backends and streams, and the one list of ops.

use std::fmt;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::buffer::{Storage, View, Weights};
use crate::ops::{
    Attention, GatherRows, Matmul, MergePatches, Norm, PatchEmbed, Pool, Rope, Sample, ScatterRows,
};
use crate::oracle::Oracle;
use crate::select::{Picks, Row, Variant};
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

    /// Whether a device may have no kernel for it: its work may also be given as several ops. See [`Exec::accepts`].
    fn is_optional(&self) -> bool {
        false
    }

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

/// A WGSL kernel of op `O`. The op's `spec()` has passed.
#[cfg(feature = "wgpu")]
pub type WgpuLaunch<O> = fn(&O, &mut crate::wgpu::WgpuCx<'_>) -> Result<(), KernelError>;

/// An op's kernels for wgpu.
#[cfg(feature = "wgpu")]
pub trait WgpuOp: Op {
    /// The rows, in table order.
    fn wgpu_variants() -> &'static [Variant<Self::Spec, WgpuLaunch<Self>>];
}

/// A CUDA kernel of op `O`. The op's `spec()` has passed.
#[cfg(feature = "cuda")]
pub type CudaLaunch<O> = fn(&O, &mut crate::cuda::CudaCx<'_>) -> Result<(), KernelError>;

/// An op's kernels for CUDA.
#[cfg(feature = "cuda")]
pub trait CudaOp: Op {
    /// The rows, in table order.
    fn cuda_variants() -> &'static [Variant<Self::Spec, CudaLaunch<Self>>];
}

/// Calls `$with` with the rows of `O` on a backend; `$else` for backends without kernels in this build.
macro_rules! with_rows {
    ($backend:expr, $rows:ident => $with:expr, $else:expr) => {
        match $backend {
            Backend::Cpu => {
                let $rows = O::cpu_variants();
                $with
            }
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => {
                let $rows = O::wgpu_variants();
                $with
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda => {
                let $rows = O::cuda_variants();
                $with
            }
            #[allow(unreachable_patterns)]
            _ => $else,
        }
    };
}

macro_rules! backend_op {
    ($($bound:tt)+) => {
        /// An op on every backend of this build: what a caller needs to list, explain and launch kernels.
        pub trait BackendOp: $($bound)+ {
            /// Names of the variants of `backend`, in table order.
            fn variants(backend: Backend) -> Vec<&'static str>;

            /// Each variant of `caps.backend` with its reason or estimate.
            fn explain(spec: &Self::Spec, caps: &Caps) -> Vec<Row>;
        }

        impl<O: $($bound)+> BackendOp for O {
            fn variants(backend: Backend) -> Vec<&'static str> {
                with_rows!(backend, rows => rows.iter().map(|row| row.name).collect(), Vec::new())
            }

            fn explain(spec: &Self::Spec, caps: &Caps) -> Vec<Row> {
                with_rows!(caps.backend, rows => crate::select::explain(rows, spec, caps), Vec::new())
            }
        }
    };
}

#[cfg(all(feature = "wgpu", feature = "cuda"))]
backend_op!(CpuOp + WgpuOp + CudaOp);
#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
backend_op!(CpuOp + WgpuOp);
#[cfg(all(not(feature = "wgpu"), feature = "cuda"))]
backend_op!(CpuOp + CudaOp);
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
backend_op!(CpuOp);

/// Runs op `O`. Ops of one stream happen in the order given.
pub trait Exec<O: Op> {
    /// Checks the op, chooses a variant and starts it.
    fn exec(&mut self, op: &O) -> Result<(), KernelError>;

    /// Whether a variant of this device takes the op: for what may also be done in several steps.
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
    fn expect(&self, rehearse: Rehearsal) {
        drop(rehearse);
    }
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
