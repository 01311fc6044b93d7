//! Expansions of attention kernels, parsed and validated: cooperative matrices of side 16, which no software
//! driver has, are compiled at least.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use ocelli_kernels::wgpu::source::{Defines, expand};

/// Expands a kernel, and validates it with every capability.
fn check(path: &str, values: &[(&'static str, &str)]) {
    let mut defines: Defines = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    for declared in ["var<immediate>", "@group(1) @binding(0) var<uniform>"] {
        defines.insert("PARAMS", declared.to_owned());
        let text = expand(path, &defines).unwrap_or_else(|error| panic!("{error} with {defines:?}"));
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{path} {defines:?}:\n{}", error.emit_to_string(&text)));
        Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{path} {defines:?}:\n{}", error.emit_to_string(&text)));
    }
}

#[test]
fn attention_by_cooperative_matrices_is_valid() {
    for (side, lanes, blocks) in [
        ("16", "128", "1"),
        ("16", "128", "2"),
        ("16", "256", "2"),
        ("8", "128", "1"),
        ("8", "128", "4"),
        ("8", "256", "2"),
    ] {
        for head_dim in ["1", "33", "64", "72", "80", "96", "128", "256"] {
            for paged in ["0", "1"] {
                for vec4 in ["0", "1"] {
                    let values = [
                        ("X", "f16"),
                        ("KV", "f16"),
                        ("SIDE", side),
                        ("WG", lanes),
                        ("BLOCKS", blocks),
                        ("HEAD_DIM", head_dim),
                        ("PAGED", paged),
                        ("RANGES", paged),
                        ("FROM", vec4),
                        ("VEC4", vec4),
                    ];
                    check("ops/attention/flash_coop.wgsl", &values);
                }
            }
        }
    }
}
