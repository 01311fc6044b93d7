//! SmolVLM, SmolVLM2 and Idefics3.

pub mod processor;
