//! Published files whose codes lie in another order or width than kernels take: made anew without a loss.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, TensorFile, sources};
use ocelli_kernels::cpu::{self, isa::Isa};
use ocelli_kernels::ops::{Matmul, MatmulSpec};
use ocelli_kernels::{Arch, Backend, BackendOp, Caps, Format, Storage};
use ocelli_tests::holds_table;

use super::build::{f32s, i32s, valid};
use super::{decoded, golden, model_of};

/// A matrix as its library stored it: its size, the format that it is read as, whether it has a bias, and which planes lie in the
/// file as kernels want them.
pub struct Layer {
    pub case: &'static str,
    pub size: [usize; 2],
    format: &'static str,
    pub bias: bool,
    stored: &'static [&'static str],
}

const fn layer(case: &'static str, format: &'static str, stored: &'static [&'static str]) -> Layer {
    Layer { case, size: [192, 256], format, bias: false, stored }
}

const fn second(case: &'static str, format: &'static str, stored: &'static [&'static str]) -> Layer {
    Layer { size: [128, 320], bias: true, ..layer(case, format, stored) }
}

const ALL: &[&str] = &["packed", "scales", "zeros"];
const FLOATS: &[&str] = &["scales", "zeros"];

pub const LAYERS: [Layer; 36] = [
    Layer { bias: true, ..layer("awq_gemm_g64", "int4g64z.f16", &[]) },
    layer("gptq_4bit_g128_sym_v1", "int4g128.f16", &[]),
    layer("gptq_4bit_g32_asym_v1_zero0", "int4g32z.f16", &[]),
    layer("gptq_4bit_g128_asym_v2", "int4g128z.f16", &[]),
    layer("gptq_4bit_channel_sym_v1", "int4row.f16", &[]),
    layer("gptq_3bit_g128_sym_v1", "int4g128.f16", &[]),
    layer("gptq_8bit_g128_asym_v2", "int8g128z.f16", &[]),
    layer("gptq_4bit_g128_sym_v1_descact", "int4g128.f16", &[]),
    layer("gptq_4bit_g32_asym_v2_descact", "int4g32z.f16", &[]),
    layer("ct_w3a16_g128_sym_dense", "int4g128", &[]),
    layer("ct_w3a16_g128_sym_padded_old", "int4g128", &[]),
    layer("ct_w4a16_g64_gidx_old", "int4g64", &[]),
    layer("ct_w8a8_int", "int8row", &[]),
    layer("ct_mxfp4a16", "fp4g32.e8m0", ALL),
    layer("ct_nvfp4a16", "fp4g16.e4m3", ALL),
    layer("bnb_int8", "int8row.f32", &[]),
    layer("bnb_nf4", "nf4g64.f32", &[]),
    second("bnb_nf4_dq_second_f16", "nf4g64.f32", &[]),
    Layer { size: [3, 50], ..layer("bnb_nf4_ragged", "f32", &[]) },
    layer("bnb_fp4_dq", "bnb4g64.f32", &[]),
    layer("torchao_int8wo", "int8row.f32", &[]),
    layer("torchao_intx4_g32", "int8g32", &[]),
    layer("torchao_int4wo_g128", "int4g128zo.f32", &[]),
    layer("quanto_qint8", "int8row", &[]),
    layer("quanto_qint4", "int4g128zo", &[]),
    layer("mlx_mxfp4", "fp4g32.e8m0", ALL),
    layer("mlx_nvfp4", "fp4g16.e4m3", ALL),
    layer("mlx_2bit_g32", "int4g32zo", FLOATS),
    layer("mlx_3bit_g64", "int4g64zo", FLOATS),
    layer("mlx_4bit_g64", "int4g64zo", ALL),
    second("mlx_4bit_g32_second_f16", "int4g32zo.f16", ALL),
    layer("mlx_6bit_g64", "int8g64zo", FLOATS),
    layer("mlx_8bit_g64", "int8g64zo", ALL),
    layer("hqq_4bit_g64_axis1", "int4g64zf.f16", &[]),
    layer("hqq_3bit_g64_axis1", "int4g64zf.f16", &[]),
    layer("hqq_4bit_g64_axis0", "f32", &[]),
];

fn doubles(file: &TensorFile, name: &str) -> Vec<f64> {
    let bytes = file.bytes(name).expect(name);
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// Some rows to the bit, and the sums of all.
#[test]
fn decode_as_their_libraries_do() {
    for Layer { case, size: [n, k], format, bias, stored } in LAYERS {
        let dir = golden("quant").join(case);
        let expected = TensorFile::open(&dir.join("golden.safetensors")).expect(case);
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case);
        assert_eq!(checkpoint.contains("proj.bias"), bias, "{case}");
        let (weights, order) = checkpoint
            .at("proj")
            .linear_in_order(n, k, bias)
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(weights.format().to_string(), format, "{case}");
        let planes = weights.format().planes(n, k);
        let made: usize = planes
            .iter()
            .filter(|plane| !stored.contains(&plane.name))
            .map(|plane| plane.rows * plane.cols * plane.dtype.size())
            .sum();
        assert_eq!(checkpoint.made(), made as u64, "{case}");
        assert_eq!(checkpoint.copied().tensors, 0, "{case}");
        let left: Vec<&str> = checkpoint.unused().collect();
        let known = ["proj.g_idx", "proj.weight_shape", "proj.input_scale", "proj.output_scale"];
        let notes = |name: &&str| known.contains(name) || case.starts_with("hqq");
        assert!(left.iter().all(notes), "{case}: {left:?}");

        let mut all = decoded(&weights);
        if let Some(order) = &order {
            assert!(case.contains("descact") || case.contains("gidx"), "{case}");
            let sorted = all.clone();
            for (row, sorted) in all.chunks_exact_mut(k).zip(sorted.chunks_exact(k)) {
                order.iter().zip(sorted).for_each(|(&column, w)| row[column as usize] = *w);
            }
        }
        equal_the_library(case, format, k, &all, &expected);

        // Values alone are the same, and leave nothing behind; those of patches are kept.
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case);
        checkpoint.keep_along_n(true);
        assert!(checkpoint.at("proj").values(n, k).expect(case) == all, "{case}");
        assert!(checkpoint.at("proj").take_values(n, k).expect(case) == all, "{case}");
        assert_eq!((checkpoint.made(), checkpoint.notes().len()), (0, 1), "{case}");
        let patches = checkpoint.at("proj").patch_embed(n, k, bias).expect(case);
        assert_eq!((patches.format().to_string().as_str(), patches.has_bias()), ("f32", bias), "{case}");
        assert!(decoded(&patches) == all, "{case}");
        assert_eq!(checkpoint.made(), (4 * n * k) as u64, "{case}");
        let wrong = checkpoint.at("proj").values(n, k + 1).expect_err("another shape").to_string();
        assert!(wrong.contains("proj"), "{wrong}");
        let planned = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case).planned();
        assert_eq!(planned.at("proj").values(n, k).expect(case).len(), n * k, "{case}");
    }
}

/// Decoded rows beside some of the library's to the bit, and the sums of all.
fn equal_the_library(case: &str, format: &str, k: usize, all: &[f32], expected: &TensorFile) {
    let rows = expected.ints("rows").expect("rows");
    let w = expected.floats("w_deq").expect("w_deq");
    // The library divides by 127 after the product, or a scale by that of the matrix: two roundings in another order. Offsets
    // are added to a product that it rounds first.
    let most = w.iter().fold(0.0f32, |most, w| most.max(w.abs()));
    let slack = |w: f32| match case {
        "bnb_int8" | "ct_nvfp4a16" => 2.0 * f32::EPSILON * w.abs(),
        _ if format.contains("zo") => f32::EPSILON * most,
        _ => 0.0,
    };
    for (row, w) in rows.iter().zip(w.chunks_exact(k)) {
        let found = &all[*row as usize * k..][..k];
        for (i, (found, w)) in found.iter().zip(w).enumerate() {
            assert!((found - w).abs() <= slack(*w), "{case}: row {row}, {i}: {found}, expected {w}");
        }
    }
    let (sums, sizes) = (doubles(expected, "w_rowsum"), doubles(expected, "w_rowabs"));
    for (row, found) in all.chunks_exact(k).enumerate() {
        let sum: f64 = found.iter().map(|&w| f64::from(w)).sum();
        let size: f64 = found.iter().map(|&w| f64::from(w.abs())).sum();
        let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-6 * sizes[row];
        assert!(close(sum, sums[row]) && close(size, sizes[row]), "{case}: sum of row {row}");
    }
}

/// Layers whose planes lie along n, as CPUs read them, and the planes that are made all the same: small ones.
const ALONG_N: [(&str, &str, &[&str]); 8] = [
    ("awq_gemm_g64", "int4g64z.f16@awq", &[]),
    ("gptq_4bit_g128_sym_v1", "int4g128.f16@gptq", &[]),
    ("gptq_4bit_g32_asym_v1_zero0", "int4g32zf.f16@gptq", &["zeros"]),
    ("gptq_4bit_g128_asym_v2", "int4g128z.f16@gptq", &[]),
    ("gptq_4bit_channel_sym_v1", "int4row.f16@gptq", &[]),
    ("gptq_8bit_g128_asym_v2", "int8g128z.f16@gptq", &[]),
    ("gptq_4bit_g128_sym_v1_descact", "int4g128.f16@act-order", &["order"]),
    ("gptq_4bit_g32_asym_v2_descact", "int4g32z.f16@act-order", &["order"]),
];

#[test]
fn along_n_they_are_read_where_they_lie() {
    for (case, format, small) in ALONG_N {
        let layer = LAYERS.iter().find(|layer| layer.case == case).expect(case);
        let (dir, [n, k]) = (golden("quant").join(case), layer.size);
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case);
        checkpoint.keep_along_n(true);
        // Columns of heads and experts may have an order then.
        let weights = checkpoint.at("proj").linear(n, k, layer.bias).expect(case);
        assert_eq!(weights.format().to_string(), format, "{case}");
        let made = weights.format().planes(n, k).into_iter().filter(|plane| small.contains(&plane.name));
        let made: usize = made.map(|plane| plane.rows * plane.cols * plane.dtype.size()).sum();
        assert_eq!((checkpoint.made(), checkpoint.copied().tensors), (made as u64, 0), "{case}");
        let expected = TensorFile::open(&dir.join("golden.safetensors")).expect(case);
        equal_the_library(case, format, k, &decoded(&weights), &expected);

        let planned = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case).planned();
        planned.keep_along_n(true);
        let plan = planned.at("proj").linear(n, k, layer.bias).expect(case);
        assert!(matches!(plan.format(), Format::KMajor(..)), "{case}: {}", plan.format());
    }
}

/// A group that is not there would be read past the end of the scales.
#[test]
fn groups_of_columns_are_checked() {
    let zeros = |n: usize| vec![0u8; n];
    let mut groups: Vec<i32> = (0..64).map(|column| 1 - column / 32).collect();
    let open = |groups: &[i32]| {
        let tensors: [(&str, &str, &[usize], Vec<u8>); 4] = [
            ("p.qweight", "I32", &[8, 32], zeros(1024)),
            ("p.qzeros", "I32", &[2, 4], zeros(32)),
            ("p.scales", "F16", &[2, 32], zeros(128)),
            ("p.g_idx", "I32", &[64], i32s(groups)),
        ];
        let file = TensorFile::in_memory("x.safetensors", Arc::from(valid(&tensors, 0)));
        let checkpoint = Checkpoint::of_file(file.expect("a file"));
        checkpoint.keep_along_n(true);
        checkpoint.at("p").linear(32, 64, false).map(|w| w.format().to_string())
    };
    assert_eq!(open(&groups).expect("an order"), "int4g32zf.f16@act-order");
    groups[7] = 2;
    let text = open(&groups).expect_err("refused").to_string();
    assert!(text.contains("p.g_idx"), "{text}");
    groups[7] = -1;
    assert!(open(&groups).is_err());
}

/// Plans read no weights and take no memory for them.
#[test]
fn plans_make_nothing() {
    for Layer { case, size: [n, k], format, stored, .. } in LAYERS {
        let checkpoint =
            Checkpoint::open(&ModelFiles::dir(golden("quant").join(case))).expect(case).planned();
        let weights = checkpoint.at("proj").linear(n, k, false).expect(case);
        // Zero points that are all the centre are known from values alone.
        let found = weights.format().to_string();
        assert!(found == format || found.replace('z', "") == format, "{case}: {found}");
        for (plane, shape) in weights.parts()[0].planes.iter().zip(weights.format().planes(n, k)) {
            let made = matches!(plane.storage(), Storage::Meta(_));
            assert_eq!(made, !stored.contains(&shape.name), "{case} {}", shape.name);
        }
    }
}

/// Layers whose values are compared elsewhere: what lies as kernels want it.
const OTHERS: [&str; 7] = [
    "ct_w4a16_g32_asym",
    "ct_w4a16_g128_sym",
    "ct_w8a16_channel",
    "ct_fp8_channel_dyn_token",
    "ct_fp8_tensor_static_act",
    "fp8_block128_exact",
    "fp8_block128_ue8m0",
];

/// The kernels that devices of a backend take for a format, for one row of x and for many.
fn kernels(w: Format, caps: &Caps) -> [&'static str; 2] {
    [1, 256].map(|m| {
        let spec = MatmulSpec { m, n: 4096, k: 4096, w, ..MatmulSpec::default() };
        let rows = <Matmul as BackendOp>::explain(&spec, caps).expect("kernels");
        rows.iter().find(|row| row.picked).map_or("none", |row| row.variant)
    })
}

/// A line of README's table: formats that lie in the file, those that are made anew, and kernels of each backend.
#[derive(Clone, Default)]
struct Line {
    formats: [Vec<String>; 2],
    kernels: [Vec<&'static str>; 3],
}

/// README's table: each published way that is read, what it becomes, and the kernels behind it.
#[test]
fn the_table_of_formats_is_that_of_the_list() {
    let backends = [
        cpu::caps(Isa::SCALAR, 2),
        Caps { backend: Backend::Wgpu, ..Caps::default() },
        Caps::of_arch(Arch::Sm80),
    ];
    let mut lines: Vec<(&str, Line)> = sources().into_iter().map(|name| (name, Line::default())).collect();
    let (_dir, modelopt) = super::corrupt::modelopt();
    let open = |case: &'static str| {
        let dir = golden("quant").join(case);
        (case, Checkpoint::open(&ModelFiles::dir(&dir)).expect(case))
    };
    let all = LAYERS.iter().map(|layer| layer.case).chain(OTHERS).map(open);
    let lying = ALONG_N.iter().map(|(case, ..)| {
        let (case, checkpoint) = open(case);
        checkpoint.keep_along_n(true);
        (case, checkpoint)
    });
    for (case, checkpoint) in all.chain([("modelopt", modelopt)]).chain(lying) {
        let shape = checkpoint.info("proj.weight").map(|info| info.shape.to_vec());
        let size = LAYERS.iter().find(|layer| layer.case == case).map(|layer| layer.size);
        let of_shape = |shape: Vec<usize>| if case == "modelopt" { [192, 256] } else { [shape[0], shape[1]] };
        let size = size.unwrap_or_else(|| shape.map_or([192, 256], of_shape));
        let (weights, _) = checkpoint.at("proj").linear_in_order(size[0], size[1], false).expect(case);
        let notes = checkpoint.notes();
        let source = notes.last().and_then(|note| note.source).expect(case);
        let (_, line) = lines.iter_mut().find(|(name, _)| *name == source).expect("a row of the list");
        let format = format!("`{}`", weights.format());
        // In place on the CPU alone, if small planes are made as well.
        let along_n = matches!(weights.format(), Format::KMajor(..));
        let formats = &mut line.formats[usize::from(checkpoint.made() > 0 && !along_n)];
        if !formats.contains(&format) {
            formats.push(format);
        }
        for (all, caps) in line.kernels.iter_mut().zip(&backends).take(if along_n { 1 } else { 3 }) {
            for kernel in kernels(weights.format(), caps) {
                assert_ne!(kernel, "none", "{case}");
                if !all.contains(&kernel) {
                    all.push(kernel);
                }
            }
        }
    }
    let mut table = "| published as | read from the file as | made anew as | CPU | WGSL | CUDA |\n\
                     | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (name, Line { formats, kernels }) in lines {
        assert!(formats.iter().any(|formats| !formats.is_empty()), "{name}: no golden layer");
        let [stored, made] = formats.map(|formats| formats.join(", "));
        let [cpu, wgsl, cuda] = kernels.map(|kernels| kernels.join(", "));
        table += &format!("| {name} | {stored} | {made} | {cpu} | {wgsl} | {cuda} |\n");
    }
    holds_table("README.md", "<!-- formats, made by the tests -->", "<!-- end of formats -->", &table);
}

/// Heads take columns as they are.
#[test]
fn an_order_of_columns_is_refused_where_none_is_applied() {
    let dir = golden("quant").join("gptq_4bit_g32_asym_v2_descact");
    let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect("a file");
    let text = checkpoint.at("proj").linear(192, 256, false).expect_err("refused").to_string();
    assert!(text.contains("`proj`: not supported: columns in activation order (g_idx)"), "{text}");
}

/// Wrong shapes, absent parts and layouts that are not read: each is told by the name of its tensor.
#[test]
fn what_does_not_fit_is_named() {
    type Tensor = (&'static str, &'static str, &'static [usize], Vec<u8>);
    let zeros = |n: usize| vec![0u8; n];
    let awq = || -> Vec<Tensor> {
        vec![
            ("p.qweight", "I32", &[64, 1], zeros(256)),
            ("p.qzeros", "I32", &[2, 1], zeros(8)),
            ("p.scales", "F16", &[2, 8], zeros(32)),
        ]
    };
    let gptq = || -> Vec<Tensor> {
        vec![
            ("p.qweight", "I32", &[8, 8], zeros(256)),
            ("p.qzeros", "I32", &[2, 1], zeros(8)),
            ("p.scales", "F16", &[2, 8], zeros(32)),
            ("p.g_idx", "I32", &[64], zeros(256)),
        ]
    };
    let with = |mut all: Vec<Tensor>, new: Tensor| {
        all.retain(|old| old.0 != new.0);
        all.push(new);
        all
    };
    let without = |mut all: Vec<Tensor>, name: &str| {
        all.retain(|old| old.0 != name);
        all
    };
    let int8 = |scale: Tensor| vec![("p.weight", "I8", &[8, 64][..], zeros(512)), scale];
    let cases: Vec<(Vec<Tensor>, &str, &str)> = vec![
        (awq(), "", ""),
        (gptq(), "", ""),
        (awq(), r#""quant_method":"awq","version":"gemv""#, "AWQ in the layout `gemv`; expected `gemm`"),
        (awq(), r#""quant_method":"awq","bits":3"#, "AWQ of 3 bits; expected 4"),
        (without(awq(), "p.scales"), r#""quant_method":"awq""#, "no tensor `p.scales`"),
        (without(awq(), "p.qzeros"), "", "no tensor `p.qzeros`"),
        (
            with(awq(), ("p.qzeros", "I32", &[1, 1], zeros(4))),
            "",
            "`p.qzeros`: shape: expected [2, 1], found [1, 1]",
        ),
        (
            with(awq(), ("p.scales", "F16", &[3, 8], zeros(48))),
            "",
            "3 groups of 64 weights fit no group size",
        ),
        (with(awq(), ("p.scales", "I8", &[2, 8], zeros(16))), "", "`p.scales`: shape: expected [1, 8]"),
        (
            with(awq(), ("p.qweight", "I32", &[32, 1], zeros(128))),
            "",
            "`p.qweight`: shape: expected [64, 1], found [32, 1]",
        ),
        (
            with(gptq(), ("p.qweight", "I32", &[9, 8], zeros(288))),
            "",
            "`p.qweight`: shape: expected [8, 8], found [9, 8]",
        ),
        (
            with(gptq(), ("p.g_idx", "I32", &[32], zeros(128))),
            "",
            "`p.g_idx`: shape: expected [64], found [32]",
        ),
        (
            with(gptq(), ("p.g_idx", "I32", &[64], i32s(&[1; 64]))),
            "",
            "`p.g_idx`: expected groups of one size, 0, found column 0 in group 1",
        ),
        (
            int8(("p.weight_scale", "F32", &[5, 1], zeros(20))),
            "",
            "`p.weight_scale`: shape: expected [8, 1], found [5, 1]",
        ),
        (
            vec![
                ("p.weight", "I8", &[8, 64], zeros(512)),
                ("p.SCB", "F32", &[8], f32s(&[1.0; 8])),
                ("p.weight_format", "U8", &[], vec![3]),
            ],
            "",
            "in the order of a GPU's tiles",
        ),
        (
            vec![("p.weight", "I8", &[8, 32], zeros(256)), ("p.SCB", "F32", &[8], f32s(&[1.0; 8]))],
            "",
            "`p.weight`: shape: expected [8, 64], found [8, 32]",
        ),
        (
            vec![
                ("p.weight_packed", "U8", &[8, 32], zeros(256)),
                ("p.weight_scale", "F8_E4M3", &[8, 4], zeros(32)),
                ("p.weight_global_scale", "F32", &[1], f32s(&[0.0])),
            ],
            "",
            "`p.weight_global_scale`: expected a finite number other than 0, found 0",
        ),
        (
            vec![
                ("p.weight_packed", "U8", &[8, 32], zeros(256)),
                ("p.weight_scale", "U8", &[8, 2], vec![255; 16]),
            ],
            "",
            "`p.weight_scale`: a scale is NaN",
        ),
    ];
    for (tensors, config, expected) in cases {
        let config = match config {
            "" => "{}".to_owned(),
            fields => format!(r#"{{"quantization_config": {{{fields}}}}}"#),
        };
        let (_dir, checkpoint) = model_of(&valid(&tensors, 0), &config);
        match checkpoint.at("p").linear(8, 64, false) {
            Ok(_) => assert_eq!(expected, "", "{tensors:?}"),
            Err(error) => {
                let text = error.to_string();
                let fits = !expected.is_empty() && text.contains(expected) && !text.contains('\n');
                assert!(fits, "expected `{expected}`, found `{text}`");
            }
        }
    }
}

/// Zero points that lie in bytes, and three bits that cross words.
#[test]
fn odd_widths_with_zero_points() {
    // Rows of 32 codes of 3 bits, 0 to 7 again and again, in three words; zero points 1 and -2.
    let row: u128 = (0..32).fold(0, |all, i| all | (i % 8) << (3 * i));
    let words: Vec<i32> = (0..2).flat_map(|_| (0..3).map(|w| (row >> (32 * w)) as u32 as i32)).collect();
    let tensors = [
        ("p.weight_packed", "I32", &[2, 3][..], i32s(&words)),
        ("p.weight_scale", "F32", &[2, 1], f32s(&[2.0, 0.5])),
        ("p.weight_zero_point", "I8", &[2, 1], vec![1, 254]),
    ];
    let file = TensorFile::in_memory("m", Arc::from(valid(&tensors, 0))).expect("a valid file");
    let weights = Checkpoint::of_file(file).at("p").linear(2, 32, false).expect("three bits");
    let signed = (0..32).map(|i| (i % 8) as f32 - 4.0);
    let expected: Vec<f32> =
        signed.clone().map(|v| 2.0 * (v - 1.0)).chain(signed.map(|v| 0.5 * (v + 2.0))).collect();
    assert_eq!((weights.format().to_string().as_str(), decoded(&weights)), ("int4rowz.f32", expected));
}
