//! `ocelli serve` as its clients meet it, with the demo model on loopback.
//!
//! Runs the binary that lies beside the test's own (`tests/run.sh` builds it first).
#![cfg(unix)]

mod adapters;
mod batches;
mod clients;
mod ends;
mod errors;
mod forms;
mod http;
mod likely;
mod many;
mod protocol;
mod search;
mod traces;
