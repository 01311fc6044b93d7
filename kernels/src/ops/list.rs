//! The one list of ops, and what is made of it: streams, names, visits and the tests of each op.

use crate::cpu::CpuOp;
use crate::cuda::CudaOp;
use crate::op::{Exec, Op, Queue};
use crate::select::{self, Row};
use crate::spec::{Backend, Caps};
use crate::wgpu::WgpuOp;

/// The list: each op's name, its type in [`ops`](crate::ops), and the parts that its tests on slow devices fall into.
///
/// - `for_each_op!(tests = run)` makes a test of each op that calls `run::<Op>()`; `for_each_op!(part_tests = run)` one of each
///   part, `run::<Op>(part, parts)`.
/// - `for_each_op!(list = with)` calls the macro `with` with `name Type, ...`.
#[macro_export]
macro_rules! for_each_op {
    ($do:ident = $with:ident) => {
        $crate::for_each_op! {
            @ $do $with
            matmul Matmul [
                part_1 part_2 part_3 part_4 part_5 part_6 part_7 part_8 part_9 part_10 part_11 part_12
            ],
            attention Attention [
                part_1 part_2 part_3 part_4 part_5 part_6 part_7 part_8 part_9 part_10 part_11 part_12
            ],
            patch_embed PatchEmbed [whole],
            norm Norm [whole],
            rope Rope [whole],
            gather_rows GatherRows [whole],
            gather_columns GatherColumns [whole],
            scatter_rows ScatterRows [whole],
            merge_patches MergePatches [whole],
            mix_rows MixRows [whole],
            route Route [whole],
            expert_matmul ExpertMatmul [whole],
            pool Pool [whole],
            pointwise Pointwise [whole],
            sample Sample [whole],
            short_conv ShortConv [whole],
            gated_delta GatedDelta [whole],
            gate Gate [whole],
            depth_conv DepthConv [whole],
            softmax Softmax [whole],
            group_norm GroupNorm [whole],
            matmul_grad MatmulGrad [whole],
            cross_entropy CrossEntropy [whole],
            sum_squares SumSquares [whole],
            adamw AdamW [whole],
            norm_grad NormGrad [whole],
            act_grad ActGrad [whole],
            gather_rows_grad GatherRowsGrad [whole],
            scatter_rows_grad ScatterRowsGrad [whole],
            merge_patches_grad MergePatchesGrad [whole],
            patch_embed_grad PatchEmbedGrad [whole],
            pointwise_grad PointwiseGrad [whole],
            pool_grad PoolGrad [whole],
            attention_grad AttentionGrad [whole],
            rope_grad RopeGrad [whole],
            contrastive_loss ContrastiveLoss [whole],
            distill_loss DistillLoss [whole],
            squared_error SquaredError [whole],
        }
    };
    (@ list $with:ident $($name:ident $op:ident [$($part:ident)+],)+) => {
        $with! { $($name $op,)+ }
    };
    (@ tests $run:ident $($name:ident $op:ident [$($part:ident)+],)+) => {
        $(#[test]
        fn $name() {
            $run::<$crate::ops::$op>();
        })+
    };
    (@ part_tests $run:ident $($name:ident $op:ident [$($part:ident)+],)+) => {
        $(mod $name {
            const PARTS: &[&str] = &[$(stringify!($part)),+];
            $(#[test]
            fn $part() {
                super::$run::<$crate::ops::$op>(stringify!($part), PARTS);
            })+
        })+
    };
}

macro_rules! streams_and_names {
    ($($name:ident $op:ident,)+) => {
        /// A queue that runs every op; used as `dyn Stream`.
        pub trait Stream: Queue $(+ Exec<super::$op>)+ {}
        impl<T: Queue $(+ Exec<super::$op>)+> Stream for T {}

        /// Names of all ops.
        pub const OP_NAMES: &[&str] = &[$(<super::$op as Op>::NAME),+];

        const _: () = {
            $(assert!(
                is_same(stringify!($name), <super::$op as Op>::NAME),
                concat!("the list calls an op `", stringify!($name), "`: expected its `Op::NAME`")
            );)+
        };

        /// Calls `visitor` for each op of the list.
        pub fn for_each_op(visitor: &mut impl OpVisitor) {
            $(visitor.visit::<super::$op>();)+
        }
    };
}

crate::for_each_op!(list = streams_and_names);

const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Something done for each op of the list.
pub trait OpVisitor {
    /// Called once for each op.
    fn visit<O: BackendOp>(&mut self);
}

/// An op on every backend: what a caller needs to list, explain and launch kernels.
pub trait BackendOp: CpuOp + WgpuOp + CudaOp {
    /// Names of the variants of `backend`, in table order, or why there are none.
    fn variants(backend: Backend) -> Result<Vec<&'static str>, &'static str>;

    /// Each variant of `caps.backend` with its reason or estimate, or why there are none.
    fn explain(spec: &Self::Spec, caps: &Caps) -> Result<Vec<Row>, &'static str>;

    /// Whether a variant of `caps.backend` runs `spec`.
    fn runs(spec: &Self::Spec, caps: &Caps) -> bool;
}

impl<O: CpuOp + WgpuOp + CudaOp> BackendOp for O {
    fn variants(backend: Backend) -> Result<Vec<&'static str>, &'static str> {
        match backend {
            Backend::Cpu => Ok(select::names(O::cpu_variants())),
            Backend::Wgpu => O::wgpu_variants().map(select::names),
            Backend::Cuda => O::cuda_variants().map(select::names),
        }
    }

    fn explain(spec: &O::Spec, caps: &Caps) -> Result<Vec<Row>, &'static str> {
        match caps.backend {
            Backend::Cpu => Ok(select::explain(O::cpu_variants(), spec, caps)),
            Backend::Wgpu => O::wgpu_variants().map(|rows| select::explain(rows, spec, caps)),
            Backend::Cuda => O::cuda_variants().map(|rows| select::explain(rows, spec, caps)),
        }
    }

    fn runs(spec: &O::Spec, caps: &Caps) -> bool {
        match caps.backend {
            Backend::Cpu => select::runs(Ok(O::cpu_variants()), spec, caps),
            Backend::Wgpu => select::runs(O::wgpu_variants(), spec, caps),
            Backend::Cuda => select::runs(O::cuda_variants(), spec, caps),
        }
    }
}
