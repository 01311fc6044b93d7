//! The command line as a user meets it: answers, exit codes, and one clear line for each error.
//!
//! Runs the binary that lies beside the test's own (`tests/run.sh` builds it first), at the level of `OCELLI_ISA`.

mod batch;
mod binary;
mod broken;
mod calibrate;
mod compare;
mod cuda;
mod forms;
mod imagine;
mod interrupt;
mod memory;
mod messages;
mod numbers;
mod otlp;
mod plan;
mod quantize;
mod run;
mod text;
mod tools;
mod tune;
mod usage;
mod vectors;
mod verify;
mod video;
mod wgpu;

pub(crate) use ocelli_tests::command::{
    Done, Temp, command, demo, ended, example, golden, json, ocelli, read_some, with_stdin,
};
