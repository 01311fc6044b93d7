//! How a linear layer is stored: published files, and what is refused with its name.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::ops::Matmul;
use ocelli_kernels::{Code, DType, Device, Format, Grouped, View, Zero};

use super::build::{f32s, i32s, i64s, valid};
use super::{decoded, golden, model_of};

type Tensor = (&'static str, &'static str, &'static [usize], Vec<u8>);

fn in_memory(tensors: &[Tensor]) -> Checkpoint {
    let bytes = valid(tensors, 0);
    Checkpoint::of_file(TensorFile::in_memory("m", Arc::from(bytes)).expect("a valid file"))
}

/// Files that compressed-tensors wrote, with the weights that it says they hold.
#[test]
fn published_files_decode_to_the_bit() {
    for (case, format, bias) in [
        ("ct_w4a16_g128_sym", "int4g128", false),
        ("ct_w4a16_g32_asym", "int4g32z", true),
        ("ct_w4a16_channel_asym", "int4rowz", false),
        ("ct_w8a16_channel", "int8row", false),
    ] {
        let dir = golden("quant").join(case);
        let file = TensorFile::open(&dir.join("model.safetensors")).expect(case);
        let expected = TensorFile::open(&dir.join("golden.safetensors")).expect(case);
        let checkpoint = Checkpoint::of_file(file);
        let weights = checkpoint.at("proj").linear(192, 256, bias).expect(case);
        assert_eq!((weights.format().to_string().as_str(), weights.has_bias()), (format, bias), "{case}");
        assert_eq!(checkpoint.unused().collect::<Vec<_>>(), Vec::<&str>::new(), "{case}");
        let (all, rows) = (decoded(&weights), expected.ints("rows").expect("rows"));
        let known = expected.floats("w_deq").expect("w_deq");
        for (row, known) in rows.iter().zip(known.chunks_exact(256)) {
            assert_eq!(&all[*row as usize * 256..][..256], known, "{case}: row {row}");
        }
        let wrong = checkpoint.at("proj").linear(192, 255, false).expect_err("another shape").to_string();
        assert!(
            wrong.contains("tensor `proj.weight_shape`: shape: expected [192, 255], found [192, 256]"),
            "{wrong}"
        );
    }
}

/// FP8 with one scale for all, for a row and for blocks, as compressed-tensors and the files of `quant_method: "fp8"` have them.
#[test]
fn published_fp8_files_decode_to_the_bit_and_multiply() {
    for (case, format, bias) in [
        ("ct_fp8_tensor_static_act", "fp8row", false),
        ("ct_fp8_channel_dyn_token", "fp8row", false),
        ("ct_fp8_block", "fp8g128", false),
        ("fp8_block128_exact", "fp8g128.f32", true),
        ("fp8_block128_partial_main", "fp8g128.f32", false),
        ("fp8_block128_ue8m0", "fp8g128.e8m0", false),
    ] {
        let dir = golden("quant").join(case);
        let expected = TensorFile::open(&dir.join("golden.safetensors")).expect(case);
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect(case);
        let &[n, k] = checkpoint.info("proj.weight").expect(case).shape else { panic!("{case}: a matrix") };
        let weights = checkpoint.at("proj").linear(n, k, bias).expect(case);
        assert_eq!((weights.format().to_string().as_str(), weights.has_bias()), (format, bias), "{case}");
        // What was rounded of activations is not used.
        assert!(checkpoint.unused().all(|name| name == "proj.input_scale"), "{case}");
        let (all, rows) = (decoded(&weights), expected.ints("rows").expect("rows"));
        let known = expected.floats("w_deq").expect("w_deq");
        for (row, known) in rows.iter().zip(known.chunks_exact(k)) {
            assert_eq!(&all[*row as usize * k..][..k], known, "{case}: row {row}");
        }

        let device = CpuDevice::at(Isa::best(), Arc::new(Pool::new(2)));
        let mut stream = device.stream().expect("the CPU");
        let x = expected.view("x").expect("x");
        let shape = [x.size(0), n];
        let storage = stream.alloc(shape[0] * shape[1] * 4).expect("memory");
        let out = View::dense(storage, &shape, DType::F32).expect("a view");
        stream.exec(&Matmul::new(x, weights, out.clone())).expect("the product");
        let mut bytes = vec![0; shape[0] * shape[1] * 4];
        stream.read(&out, &mut bytes).expect("y");
        let y = expected.floats("y").expect("y");
        let max = y.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        for (i, (got, want)) in bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).zip(&y).enumerate()
        {
            assert!((got - want).abs() <= 1e-5 * max, "{case} y[{i}]: {got}, expected {want}");
        }
    }
}

/// Rows of FP8 that are no whole words are copied; blocks are those that the configuration names.
#[test]
fn ragged_fp8_rows_and_stated_blocks() {
    // 1, -1, 2, 448, 2^-9, 0.875, then the same times -1.
    let row = [0x38, 0xb8, 0x40, 0x7e, 0x01, 0x36];
    let bytes: Vec<u8> = row.iter().copied().chain(row.iter().map(|code| code ^ 0x80)).collect();
    let file = |scales: &'static [usize], values: &[f32]| {
        let tensors = [
            ("p.weight", "F8_E4M3", &[2, 6][..], bytes.clone()),
            ("p.weight_scale", "F32", scales, f32s(values)),
        ];
        valid(&tensors, 0)
    };
    let values = [1.0, -1.0, 2.0, 448.0, 0.001_953_125, 0.875];
    let checkpoint =
        Checkpoint::of_file(TensorFile::in_memory("m", Arc::from(file(&[2], &[1.0, 2.0]))).expect("a file"));
    let weights = checkpoint.at("p").linear(2, 6, false).expect("a scale a row");
    let expected: Vec<f32> = values.iter().copied().chain(values.map(|v| -2.0 * v)).collect();
    assert_eq!((weights.format().to_string().as_str(), decoded(&weights)), ("fp8row.f32", expected));

    let block = r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 4]}}"#;
    let (_dir, checkpoint) = model_of(&file(&[1, 2], &[1.0, 8.0]), block);
    let weights = checkpoint.at("p").linear(2, 6, false).expect("stated blocks");
    let mut expected: Vec<f32> = values.iter().copied().chain(values.map(|v| -v)).collect();
    for row in expected.chunks_exact_mut(6) {
        row[4..].iter_mut().for_each(|v| *v *= 8.0);
    }
    assert_eq!((weights.format().to_string().as_str(), decoded(&weights)), ("fp8g4.f32", expected));
}

fn packed(rest: Vec<Tensor>) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = vec![
        ("p.weight_shape", "I64", &[2], i64s(&[8, 64])),
        ("p.weight_packed", "I32", &[8, 8], i32s(&[0x7654_3210; 64])),
        ("p.weight_scale", "F32", &[8, 2], f32s(&[1.0; 16])),
    ];
    for new in rest {
        all.retain(|old| old.0 != new.0);
        all.push(new);
    }
    all
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let byte = |n: usize| vec![0u8; n];
    let cases: Vec<(Vec<Tensor>, &str)> = vec![
        (
            vec![("p.weight", "U8", &[8], byte(8)), ("p.weight.absmax", "F32", &[1], byte(4))],
            "no tensor `p.weight.quant_state.bitsandbytes__nf4`",
        ),
        (
            vec![("p.weight", "U32", &[1], byte(4)), ("p.scales", "F16", &[1], byte(2))],
            "`p.weight`: shape: expected [8, 8], found [1]",
        ),
        (vec![("p.W_q", "U8", &[1], byte(1))], "no tensor `p.packing`"),
        (
            vec![("p._weight_qdata", "U8", &[1], byte(1))],
            "m: `p`: not supported: torchao values: neither integers of 8 or 4 bits nor with scales beside them; supported are F32, BF16, F16,",
        ),
        (
            vec![("p.weight._data._data", "U8", &[1], byte(1))],
            "`p.weight._data._data`: shape: expected [8, 64], found [1]",
        ),
        (
            vec![
                ("p.weight", "F8_E5M2", &[8, 64], byte(512)),
                ("p.weight_scale_inv", "F32", &[1, 1], byte(4)),
            ],
            "scaled values: neither integers of 8 bits nor FP8 (E4M3)",
        ),
        (
            vec![("p.weight", "F8_E4M3", &[8, 64], byte(512)), ("p.weight_scale", "I8", &[8, 2], byte(16))],
            "`p.weight_scale`: expected F32, BF16, F16 or F8_E8M0, found I8",
        ),
        (
            vec![("p.weight", "F8_E4M3", &[8, 64], byte(512)), ("p.weight_scale", "BF16", &[3, 1], byte(6))],
            "`p.weight_scale`: shape: [3, 1] scales of [8, 64] weights fit neither",
        ),
        (
            vec![
                ("p.weight", "F8_E4M3", &[64, 8], byte(512)),
                ("p.weight_scale", "BF16", &[64, 1], byte(128)),
            ],
            "`p.weight`: shape: expected [8, 64], found [64, 8]",
        ),
        (
            vec![
                ("p.weight", "F8_E4M3", &[8, 64], byte(512)),
                ("p.weight_scale_inv", "F8_E8M0", &[1, 1], vec![255]),
            ],
            "`p.weight_scale_inv`: a scale is NaN",
        ),
        (vec![("p.weight", "I8", &[8, 64], byte(512))], "weight of type i8"),
        (
            vec![("p.weight", "F8_E4M3", &[8, 64], byte(512))],
            "tensor `p.weight`: expected F32, BF16, F16, I8, U8 or I32, found F8_E4M3",
        ),
        (
            vec![
                ("p.weight_packed", "U8", &[8, 32], byte(256)),
                ("p.weight_scale", "F8_E4M3", &[8, 4], byte(32)),
            ],
            "`p.weight_scale`: shape: expected [8, 2], found [8, 4]",
        ),
        (
            packed(vec![("p.weight_g_idx", "I32", &[64], i32s(&[1; 64]))]),
            "`p.weight_g_idx`: expected groups of one size, 0, found column 0 in group 1",
        ),
        (
            packed(vec![("p.weight_packed", "I32", &[8, 9], byte(288))]),
            "tensor `p.weight_packed`: shape: expected [8, 8], found [8, 9]",
        ),
        (packed(vec![("p.weight_shape", "I64", &[2], i64s(&[64, 8]))]), "expected [8, 64], found [64, 8]"),
        (
            packed(vec![("p.weight_scale", "F32", &[1], byte(4))]),
            "tensor `p.weight_scale`: shape: expected [8, 1], found [1]",
        ),
        (packed(vec![("p.weight_scale", "U8", &[8, 2], byte(16))]), "weight_scale of type U8"),
        (packed(vec![("p.weight_scale", "F32", &[8, 3], byte(96))]), "3 groups of 64 weights"),
        (packed(vec![("p.weight_scale", "F32", &[8, 0], byte(0))]), "shape: expected [8, 1], found [8, 0]"),
        (
            packed(vec![("p.weight_zero_point", "I8", &[8, 2], byte(16))]),
            "tensor `p.weight_zero_point`: shape: expected [1, 2], found [8, 2]",
        ),
        (packed(vec![("p.bias", "F32", &[4], byte(16))]), "tensor `p.bias`: shape: expected [8], found [4]"),
        (
            vec![("p.weight_packed", "I32", &[8, 8], byte(256))],
            "no tensor `p.weight_scale`; nearest: p.weight_packed",
        ),
    ];
    for (tensors, expected) in cases {
        let text = in_memory(&tensors)
            .at("p")
            .linear(8, 64, tensors.iter().any(|tensor| tensor.0 == "p.bias"))
            .expect_err(expected)
            .to_string();
        assert!(text.contains(expected) && !text.contains('\n'), "expected `{expected}`, found `{text}`");
    }
    let format = in_memory(&packed(vec![])).at("p").linear(8, 64, false).expect("packed").format();
    assert_eq!(
        format,
        Format::Grouped(Grouped { code: Code::Int4, group: 32, zero: Zero::None, scale: DType::F32 })
    );
}

/// What the tensors leave open comes from `config.json`, by the group that the module belongs to.
#[test]
fn the_configuration_tells_what_tensors_leave_open() {
    // Three groups of 100 weights: of 34, or of 40 with a short one at the end.
    let tensors: Vec<Tensor> = ["a", "b"]
        .into_iter()
        .flat_map(|name: &str| -> Vec<Tensor> {
            let name = |rest: &str| -> &'static str { format!("{name}.{rest}").leak() };
            vec![
                (name("weight_packed"), "I32", &[2, 13], i32s(&[-1; 26])),
                (name("weight_scale"), "F32", &[2, 3], f32s(&[1.0; 6])),
                (name("weight_zero_point"), "I32", &[1, 3], i32s(&[0; 3])),
            ]
        })
        .collect();
    let weights = |size: u32, symmetric: bool| {
        format!(
            r#""weights":{{"num_bits":4,"type":"int","strategy":"group","group_size":{size},"symmetric":{symmetric}}}"#
        )
    };
    let config = |extra: &str| {
        format!(
            r#"{{"quantization_config":{{"quant_method":"compressed-tensors","format":"pack-quantized",{extra}"config_groups":{{
            "one":{{"targets":["re:a"],{}}},"two":{{"targets":["b"],{}}}}}}}}}"#,
            weights(34, false),
            weights(40, true)
        )
    };
    let bytes = valid(&tensors, 0);
    let (_dir, checkpoint) = model_of(&bytes, &config(""));
    let format =
        |name: &str| checkpoint.at(name).linear(2, 100, false).map(|w| w.format().to_string()).expect(name);
    assert_eq!((format("a"), format("b")), ("int4g34z.f32".into(), "int4g40.f32".into()));
    let stated = checkpoint.quantization().expect("a configuration").to_string();
    assert_eq!(
        stated,
        "compressed-tensors pack-quantized: one int4 group 34 with zero points, two int4 group 40"
    );

    let refused = |config: &str| {
        let (_dir, checkpoint) = model_of(&bytes, config);
        checkpoint.at("a").linear(2, 100, false).expect_err("refused").to_string()
    };
    assert!(
        refused("{}")
            .contains("3 groups of 100 weights: expected one group size of config.json to fit, found []")
    );
    let elsewhere = config("").replace("re:a", "re:model");
    assert!(refused(&elsewhere).contains("found [34, 40]"), "{}", refused(&elsewhere));
    let rotated = config(r#""transform_config":{"config_groups":{"u":{}}},"#);
    assert!(refused(&rotated).contains("rotated weights"));
    let activations = config("")
        .replace("\"targets\":[\"re:a\"]", "\"targets\":[\"re:a\"],\"input_activations\":{\"num_bits\":8}");
    assert!(refused(&activations).contains("quantized activations"));
}
