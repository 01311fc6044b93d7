//! Vision towers: one, driven by plans, and how pictures go through it.

mod encode;
mod plan;
mod positions;
mod vit;

pub use encode::{Connect, encode};
pub use plan::{Mlp, Names, Places, VitPlan, activation};
pub use vit::{Layout, Pixels, Vit};
