//! Choosing the next token: parameters and random numbers. The choice itself is the op
//! [`Sample`](ocelli_kernels::ops::Sample), which runs on the device.

mod params;
mod philox;

pub use params::{ParamError, SamplingParams};
pub use philox::{philox4x32, uniform};

#[cfg(test)]
mod tests;
