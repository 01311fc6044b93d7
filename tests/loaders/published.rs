//! Published files whose codes lie in another order or width than kernels take: made anew without a loss.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_kernels::Storage;

use super::build::{f32s, i32s, valid};
use super::{decoded, golden, model_of};

const N: usize = 192;
const K: usize = 256;

/// Each case, the format that it is read as, and whether it has a bias.
const CASES: [(&str, &str, bool); 18] = [
    ("awq_gemm_g64", "int4g64z.f16", true),
    ("gptq_4bit_g128_sym_v1", "int4g128.f16", false),
    ("gptq_4bit_g32_asym_v1_zero0", "int4g32z.f16", false),
    ("gptq_4bit_g128_asym_v2", "int4g128z.f16", false),
    ("gptq_4bit_channel_sym_v1", "int4row.f16", false),
    ("gptq_3bit_g128_sym_v1", "int4g128.f16", false),
    ("gptq_8bit_g128_asym_v2", "int8g128z.f16", false),
    ("ct_w3a16_g128_sym_dense", "int4g128", false),
    ("ct_w3a16_g128_sym_padded_old", "int4g128", false),
    ("ct_w8a8_int", "int8row", false),
    ("ct_mxfp4a16", "int8g32.f32", false),
    ("ct_nvfp4a16", "int8g16.f32", false),
    ("bnb_int8", "int8row.f32", false),
    ("torchao_int8wo", "int8row.f32", false),
    ("torchao_intx4_g32", "int8g32", false),
    ("quanto_qint8", "int8row", false),
    ("mlx_mxfp4", "int8g32.f32", false),
    ("mlx_nvfp4", "int8g16.f32", false),
];

fn doubles(file: &TensorFile, name: &str) -> Vec<f64> {
    let bytes = file.bytes(name).expect(name);
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// Some rows to the bit, and the sums of all.
#[test]
fn decode_as_their_libraries_do() {
    for (case, format, bias) in CASES {
        let dir = golden("quant").join(case);
        let expected = TensorFile::open(&dir.join("golden.safetensors")).expect(case);
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case);
        let bias = bias && checkpoint.contains("proj.bias");
        let weights =
            checkpoint.at("proj").linear(N, K, bias).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(weights.format().to_string(), format, "{case}");
        assert_eq!(checkpoint.made(), weights.format().bytes(N, K), "{case}");
        let left: Vec<&str> = checkpoint.unused().collect();
        let known = ["proj.g_idx", "proj.weight_shape", "proj.input_scale", "proj.output_scale", "proj.bias"];
        assert!(left.iter().all(|name| known.contains(name)), "{case}: {left:?}");

        let all = decoded(&weights);
        let rows = expected.ints("rows").expect("rows");
        let w = expected.floats("w_deq").expect("w_deq");
        // The library divides by 127 after the product: two roundings in another order.
        let slack = if case == "bnb_int8" { 2.0 * f32::EPSILON } else { 0.0 };
        for (row, w) in rows.iter().zip(w.chunks_exact(K)) {
            let found = &all[*row as usize * K..][..K];
            for (i, (found, w)) in found.iter().zip(w).enumerate() {
                assert!(
                    (found - w).abs() <= slack * w.abs(),
                    "{case}: row {row}, {i}: {found}, expected {w}"
                );
            }
        }
        let (sums, sizes) = (doubles(&expected, "w_rowsum"), doubles(&expected, "w_rowabs"));
        for (row, found) in all.chunks_exact(K).enumerate() {
            let sum: f64 = found.iter().map(|&w| f64::from(w)).sum();
            let size: f64 = found.iter().map(|&w| f64::from(w.abs())).sum();
            let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-6 * sizes[row];
            assert!(close(sum, sums[row]) && close(size, sizes[row]), "{case}: sum of row {row}");
        }
    }
}

/// Plans read no weights and take no memory for them.
#[test]
fn plans_make_nothing() {
    for (case, format, _) in CASES {
        let checkpoint =
            Checkpoint::open(&ModelFiles::dir(golden("quant").join(case))).expect(case).planned();
        let weights = checkpoint.at("proj").linear(N, K, false).expect(case);
        assert_eq!(weights.format().to_string(), format, "{case}");
        assert!(matches!(weights.parts()[0].planes[0].storage(), Storage::Meta(_)), "{case}");
    }
}

#[test]
fn an_order_of_columns_is_refused() {
    let dir = golden("quant").join("gptq_4bit_g32_asym_v2_descact");
    let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect("a file");
    let text = checkpoint.at("proj").linear(N, K, false).expect_err("refused").to_string();
    assert!(text.contains("`proj`: not supported: columns in activation order (desc_act, g_idx)"), "{text}");
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
        (with(gptq(), ("p.g_idx", "I32", &[64], i32s(&[1; 64]))), "", "columns in activation order"),
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
