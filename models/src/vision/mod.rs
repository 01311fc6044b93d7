//! Vision towers: one, driven by plans, and how pictures go through it.

mod alike;
mod davit;
mod encode;
mod fastvit;
mod inner;
mod llama4;
mod plan;
mod positions;
mod product;
mod raw;
mod taps;
mod vit;

pub use davit::{Davit, DavitNames, DavitPlan, DavitStage};
pub(crate) use encode::upload;
pub use encode::{ByTile, Connect, encode};
pub use fastvit::{FastVit, FastVitPlan};
pub use plan::{Mlp, Names, Places, Together, VitPlan, activation};
pub(crate) use positions::{cubic_taps, stretched};
pub use taps::Between;
pub(crate) use vit::Segments;
pub use vit::{Layout, Pixels, Vit};
