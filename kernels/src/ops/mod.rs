//! The ops. Each folder holds one: operands, shape check and cost in `mod.rs`, the f64 maths in `reference.rs`, one file
//! per backend, and the conformance cases.

mod attention;
mod check;
mod depth_conv;
mod expert_matmul;
mod gate;
mod gated_delta;
mod gather_rows;
mod index;
mod list;
mod matmul;
mod merge_patches;
mod mix_rows;
mod norm;
mod patch_embed;
mod pointwise;
mod pool;
mod rope;
mod route;
mod sample;
mod scatter_rows;
mod sequences;
mod short_conv;
mod softmax;

pub use attention::{Attention, AttentionKv, AttentionSpec, Seen};
pub use depth_conv::{DepthConv, DepthConvSpec, Filter};
pub use expert_matmul::{ExpertMatmul, ExpertMatmulSpec};
pub use gate::{Gate, GateSpec};
pub use gated_delta::{GatedDelta, GatedDeltaSpec};
pub use gather_rows::{GatherRows, GatherRowsSpec};
pub use list::{BackendOp, OP_NAMES, OpVisitor, Stream, for_each_op};
pub use matmul::{Activation, FP8_SPAN, Math, Matmul, MatmulSpec, RowNorm};
pub use merge_patches::{MergeOrder, MergePatches, MergePatchesSpec};
pub use mix_rows::{MixRows, MixRowsSpec};
pub use norm::{Norm, NormKind, NormSpec};
pub use patch_embed::{PatchEmbed, PatchEmbedSpec};
pub use pointwise::{Pointwise, PointwiseSpec};
pub use pool::{Pool, PoolKind, PoolOver, PoolSpec};
pub use rope::{KvWrite, QkNorm, Rope, RopeSpec, RopeStyle};
pub use route::{Route, RouteSpec, Scores};
pub use sample::{NO_TOKEN, Sample, SampleSpec, params};
pub use scatter_rows::{ScatterRows, ScatterRowsSpec};
pub use sequences::Sequences;
pub use short_conv::{ConvForm, MOST_TAPS, ShortConv, ShortConvSpec};
pub use softmax::{Softmax, SoftmaxSpec};
