//! Connectors between tower and decoder.

pub mod pixel_shuffle;
