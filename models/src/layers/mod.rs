//! The layers that families are made of: weights with the module path they came from, and one call to run each.

mod conv;
mod embedding;
mod experts;
mod group_norm;
mod linear;
mod mlp;
mod norm;
mod rope;
mod rows;
mod scale;

pub use conv::{Conv, DepthConv, rows_or_zeros, table};
pub use embedding::Embedding;
pub use experts::{Experts, ExpertsPlan, SharedPlan};
pub use group_norm::GroupNorm;
pub use linear::{Linear, Stacked};
pub use mlp::Mlp;
pub use norm::Norm;
pub use rope::{RopeConfig, RopeKind, RopeTable};
pub use rows::{Unit, add_rows, constant, copy_rows, gather_rows, put_rows};
pub use scale::LayerScale;
