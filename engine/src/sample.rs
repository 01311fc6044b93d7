//! Choosing the next token: parameters, forms of answers, random numbers. The choice itself is the op
//! [`Sample`](ocelli_kernels::ops::Sample), which runs on the device.

mod grammar;
mod logprobs;
mod params;
mod philox;

pub(crate) use grammar::Guide;
pub use grammar::{Form, Grammar, Grammars};
pub use logprobs::{Likely, Logprobs};
pub use params::{ParamError, SamplingParams};
pub use philox::{philox4x32, uniform};

#[cfg(test)]
mod tests;
