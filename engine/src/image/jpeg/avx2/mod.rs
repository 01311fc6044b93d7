//! The transform, upsampling and colour conversion, 16 lanes at a time: to the bit what [`super::idct`] and
//! [`super::output`] compute.

pub(super) mod idct;
pub(super) mod output;

#[cfg(test)]
mod tests;
