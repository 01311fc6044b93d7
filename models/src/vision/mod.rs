//! Vision towers.

pub mod siglip;
