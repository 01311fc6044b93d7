//! The layers that families are made of: weights with the module path they came from, and one call to run each.

mod embedding;
mod linear;
mod norm;
mod rope;
mod scale;

pub use embedding::Embedding;
pub use linear::{Linear, Stacked};
pub use norm::Norm;
pub use rope::{RopeConfig, RopeKind, RopeTable};
pub use scale::LayerScale;
