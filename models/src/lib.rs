//! Vision language model families: compositions of towers, connectors and decoders. A family knows no backend.

pub mod connector;
pub mod demo;
pub mod layers;
pub mod registry;
pub mod smolvlm;
pub mod text;
pub mod vision;

pub use registry::{FAMILIES, Family, family, load};
