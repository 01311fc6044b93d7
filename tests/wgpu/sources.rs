//! Expansions of WGSL kernels, parsed, validated and translated to SPIR-V: matrices of side 16, which no
//! software driver has, are compiled at least.

use naga::back::spv;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use ocelli_kernels::wgpu::source::{Defines, expand};
use ocelli_kernels::{Code, DType, Grouped, Zero};

type Values = Vec<(&'static str, String)>;

/// Expands a kernel, validates it with every capability, and translates it.
fn check(path: &str, values: &[&Values]) {
    let mut defines: Defines = values.iter().flat_map(|values| values.iter().cloned()).collect();
    for declared in ["var<immediate>", "@group(1) @binding(0) var<uniform>"] {
        defines.insert("PARAMS", declared.to_owned());
        let text = expand(path, &defines).unwrap_or_else(|error| panic!("{error} with {defines:?}"));
        let module = naga::front::wgsl::parse_str(&text)
            .unwrap_or_else(|error| panic!("{path} {defines:?}:\n{}", error.emit_to_string(&text)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|error| panic!("{path} {defines:?}:\n{}", error.emit_to_string(&text)));
        let options = spv::Options { lang_version: (1, 4), ..spv::Options::default() };
        let words = spv::write_vec(&module, &info, &options, None);
        words.unwrap_or_else(|error| panic!("{path} {defines:?}: {error}"));
    }
}

fn values(all: &[(&'static str, &str)]) -> Values {
    all.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// Integer weights: each width, with each kind of zero point, each type of scale, each kind of group.
fn integers(wide: &'static str, bytes: &'static str) -> Vec<Values> {
    Code::ALL.iter().filter(|code| code.is_int()).flat_map(|&code| codes(code, wide, bytes)).collect()
}

/// Weights of every code, otherwise as above.
fn every_code(wide: &'static str) -> Vec<Values> {
    Code::ALL.iter().flat_map(|&code| codes(code, wide, "0")).collect()
}

fn codes(code: Code, wide: &'static str, bytes: &'static str) -> Vec<Values> {
    let mut all = Vec::new();
    for zero in Zero::ALL {
        for scale in [DType::F32, DType::BF16, DType::F16, DType::E4M3, DType::E8M0] {
            if !(Grouped { code, group: 0, zero, scale }).is_valid() {
                continue;
            }
            for groups in ["eight", "any"] {
                all.push(values(&[
                    ("W", "codes"),
                    ("CODE", code.folder()),
                    ("BITS", &code.bits().to_string()),
                    ("CENTRE", &code.centre().unwrap_or_default().to_string()),
                    ("ZERO", zero.name()),
                    ("SCALE", scale.name()),
                    ("GROUPS", groups),
                    // Words of 4 bits are read one by one unless bytes are wanted.
                    ("WVEC", if code.bits() == 4 && bytes == "0" { "0" } else { wide }),
                    ("BYTES", bytes),
                ]));
            }
        }
    }
    all
}

/// Dense weights of each type, read by elements and by 16 bytes.
fn dense() -> Vec<Values> {
    let types = ["f32", "bf16", "f16"].into_iter();
    types.flat_map(|w| ["0", "1"].map(|vec| values(&[("W", w), ("WVEC", vec)]))).collect()
}

/// Every format as the kernels that multiply floats read it.
fn all_formats() -> Vec<Values> {
    let grouped = ["0", "1"].into_iter().flat_map(|wide| every_code(wide));
    dense().into_iter().chain(grouped).collect()
}

/// The cut of a streaming kernel, its numbers in turn.
fn lanes(i: usize, subgroup: &str) -> Values {
    values(&[
        ("SUBGROUP", subgroup),
        ("M", ["1", "2", "4", "8"][i % 4]),
        ("R", "4"),
        ("WG", ["32", "64", "128"][i % 3]),
    ])
}

/// What follows the products: whole, gated, partial sums, and each part of the epilogue at least once.
fn epilogues() -> Vec<Values> {
    [
        ["none", "none", "0", "none", "f32", "0"],
        ["f32", "gelu_tanh", "0", "f16", "bf16", "0"],
        ["bf16", "gelu_erf", "0", "inplace", "f16", "0"],
        ["none", "quick_gelu", "0", "bf16", "f32", "0"],
        ["f16", "silu", "1", "none", "f16", "0"],
        ["none", "silu", "1", "inplace", "f32", "0"],
        ["f32", "none", "0", "none", "f32", "1"],
    ]
    .map(|all| {
        values(&[
            ("BIAS", all[0]),
            ("ACT", all[1]),
            ("GATED", all[2]),
            ("RESIDUAL", all[3]),
            ("OUT", all[4]),
            ("PARTIAL", all[5]),
        ])
    })
    .to_vec()
}

/// Each format with one epilogue, taken in turn, and each epilogue.
fn pairs(formats: &[Values]) -> Vec<(Values, Values)> {
    let epilogues = epilogues();
    let count = formats.len().max(epilogues.len());
    (0..count).map(|i| (formats[i % formats.len()].clone(), epilogues[i % epilogues.len()].clone())).collect()
}

#[test]
fn cooperative_matrices_of_both_sides_take_every_format() {
    let formats: Vec<Values> = all_formats();
    for side in ["8", "16"] {
        for lanes in ["64", "128", "256"] {
            for vec in ["0", "1"] {
                let cut = values(&[("SIDE", side), ("WG", lanes), ("X", "f16"), ("XVEC", vec)]);
                for format in &formats {
                    for epilogue in &epilogues() {
                        // Every format with each side, and every epilogue with one width of subgroups.
                        if lanes == "128" || epilogue == &epilogues()[4] {
                            check("ops/matmul/gemm_coop.wgsl", &[&cut, format, epilogue]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tiles_of_f32_and_f16_are_valid() {
    let formats: Vec<Values> = all_formats();
    let tiles = [["32", "128", "16", "32"], ["64", "64", "32", "16"], ["128", "128", "16", "16"]];
    for (i, (format, epilogue)) in pairs(&formats).iter().enumerate() {
        for element in ["f32", "f16"] {
            let [rows, cols, depth, across] = tiles[i % 3];
            let cut = values(&[
                ("TILE", element),
                ("ROWS", rows),
                ("COLS", cols),
                ("DEPTH", if element == "f16" { "32" } else { depth }),
                ("ACROSS", across),
                ("X", ["f32", "bf16", "f16"][i / 2 % 3]),
                ("XVEC", ["0", "1"][i % 2]),
            ]);
            check("ops/matmul/gemm.wgsl", &[&cut, format, epilogue]);
        }
    }
}

#[test]
fn streaming_kernels_are_valid_with_and_without_subgroups() {
    for (i, (format, epilogue)) in pairs(&all_formats()).iter().enumerate() {
        for subgroup in ["0", "1"] {
            let cut = lanes(i, subgroup);
            let x = values(&[("X", ["f32", "bf16", "f16"][i / 2 % 3]), ("XVEC", ["0", "1"][i % 2])]);
            let steps = values(&[("STEPS", ["1", "2", "4"][i % 3])]);
            check("ops/matmul/gemv.wgsl", &[&cut, &x, &steps, format, epilogue]);
        }
    }
}

#[test]
fn products_of_bytes_are_valid_with_and_without_subgroups() {
    for wide in ["0", "1"] {
        for (i, (format, epilogue)) in pairs(&integers(wide, "1")).iter().enumerate() {
            for subgroup in ["0", "1"] {
                check("ops/matmul/gemv_dot4.wgsl", &[&lanes(i, subgroup), format, epilogue]);
            }
            check("ops/matmul/gemm_dot4.wgsl", &[format, epilogue]);
        }
    }
    for x in ["f32", "bf16", "f16"] {
        for vec in ["0", "1"] {
            for bits in ["4", "8"] {
                check("ops/matmul/round.wgsl", &[&values(&[("X", x), ("XVEC", vec), ("BITS", bits)])]);
            }
        }
    }
}
