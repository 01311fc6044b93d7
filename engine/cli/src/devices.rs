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
        #[cfg(feature = "wgpu")]
        if let Some(details) = &device.wgpu {
            let mb = |bytes: u64| format!("{} MiB", bytes >> 20);
            let features =
                if details.features.is_empty() { "none".into() } else { details.features.join(", ") };
            let _ = writeln!(
                text,
                "         {} ({}), {}\n         features: {features}\n         buffers up to {}, bindings up to {}, {} per \
                 kernel; workgroups of {} with {} KiB",
                details.api,
                details.kind,
                details.driver,
                mb(details.max_buffer),
                mb(details.max_binding),
                details.storage_buffers,
                details.workgroup_invocations,
                details.workgroup_memory >> 10,
            );
        }
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
