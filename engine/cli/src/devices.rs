//! `ocelli devices`: what this machine can compute on.

use std::fmt::Write;
use std::process::ExitCode;

use crate::args::DevicesArgs;
use crate::fail::{Outcome, print, print_json};

/// Runs the command.
pub fn devices(args: &DevicesArgs) -> Outcome {
    let all = ocelli_kernels::devices();
    if args.json {
        print_json(&serde_json::json!({ "schema": "ocelli.devices.v1", "devices": all }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for device in &all {
        let state = device
            .unavailable
            .as_ref()
            .map_or_else(|| device.name.clone(), |why| format!("unavailable: {why}"));
        let _ = writeln!(text, "{:<5} {}  {state}", device.backend, device.index);
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
