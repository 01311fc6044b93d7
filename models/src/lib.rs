//! Vision language model families.

pub mod smolvlm;
