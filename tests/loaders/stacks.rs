//! Matrices that lie one after another in each of their tensors, as experts do; and what configurations of GPTQ's layout, AutoRound and
//! compressed-tensors leave to the tensors.

use ocelli_engine::weights::{Checkpoint, Scope, stacked};
use ocelli_kernels::{View, Weights};

use super::build::{f32s, i32s, valid};
use super::{TempDir, decoded, model_of};

type Tensor = (&'static str, &'static str, &'static [usize], Vec<u8>);

/// Bytes that differ from each other and from expert to expert.
fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| ((i + seed) * (i + 7 * seed + 3) / 5 % 251) as u8).collect()
}

/// A checkpoint of these, which begin at a multiple of eight bytes.
fn open(tensors: &[Tensor], config: &str) -> (TempDir, Checkpoint) {
    let header = u64::from_le_bytes(*valid(tensors, 0).first_chunk().expect("a length")) as usize;
    model_of(&valid(tensors, header.next_multiple_of(8) - header), config)
}

/// Three matrices `[8, 64]`, all of a module's.
fn modules(tensors: &[Tensor]) -> Result<(Vec<f32>, u64, usize), String> {
    let (_dir, checkpoint) = open(tensors, "{}");
    let place = checkpoint.at("m");
    let all: Vec<(Scope<'_>, usize)> = (0..3).map(|i| (place.part(i, 3), 8)).collect();
    let w = stacked(&all, 64).map_err(|error| error.to_string())?;
    assert_eq!((w.n(), w.k(), w.parts().len()), (24, 64, 3));
    Ok((decoded(&w), checkpoint.made(), checkpoint.copied().tensors))
}

/// The same matrices apart: the parts of each tensor under three names.
fn apart(tensors: &[Tensor]) -> Vec<f32> {
    let mut all = Vec::new();
    for i in 0..3 {
        let part = |(name, dtype, shape, bytes): &Tensor| -> Tensor {
            let size = bytes.len() / 3;
            let part =
                if shape.first() == Some(&3) { bytes[i * size..][..size].to_vec() } else { bytes.clone() };
            (*name, *dtype, if shape.first() == Some(&3) { &shape[1..] } else { *shape }, part)
        };
        let (_dir, checkpoint) = open(&tensors.iter().map(part).collect::<Vec<_>>(), "{}");
        all.extend(decoded(&checkpoint.at("m").linear(8, 64, false).expect("a matrix")));
    }
    all
}

#[test]
fn stacks_are_read_where_they_lie() {
    let floats = |count: usize| f32s(&(0..count).map(|i| 0.01 + i as f32 / 100.0).collect::<Vec<_>>());
    // Codes without NaN, and scales of E4M3 and E8M0.
    let fp8 = |count: usize| bytes(count, 1).into_iter().map(|byte| byte & 0xbf).collect::<Vec<u8>>();
    let cases: [(&str, Vec<Tensor>); 6] = [
        (
            "MLX",
            vec![
                ("m.scales", "F32", &[3, 8, 2], floats(48)),
                ("m.biases", "F32", &[3, 8, 2], floats(48)),
                ("m.weight", "U32", &[3, 8, 8], bytes(768, 2)),
            ],
        ),
        (
            "NVFP4 of MLX",
            vec![("m.weight", "U32", &[3, 8, 8], bytes(768, 3)), ("m.scales", "U8", &[3, 8, 4], fp8(96))],
        ),
        (
            "NVFP4 of ModelOpt",
            vec![
                ("m.weight_scale_2", "F32", &[3], f32s(&[0.5, 0.25, 2.0])),
                ("m.weight", "U8", &[3, 8, 32], bytes(768, 4)),
                ("m.weight_scale", "F8_E4M3", &[3, 8, 4], fp8(96)),
            ],
        ),
        (
            "one scale of all",
            vec![
                ("m.weight_scale_2", "F32", &[], f32s(&[0.5])),
                ("m.weight", "U8", &[3, 8, 32], bytes(768, 4)),
                ("m.weight_scale", "F8_E4M3", &[3, 8, 4], fp8(96)),
            ],
        ),
        (
            "FP8",
            vec![
                ("m.weight_scale", "F32", &[3, 8, 1], floats(24)),
                ("m.weight", "F8_E4M3", &[3, 8, 64], fp8(1536)),
            ],
        ),
        (
            "pack-quantized",
            vec![
                ("m.weight_packed", "I32", &[3, 8, 8], bytes(768, 5)),
                ("m.weight_scale", "F32", &[3, 8, 2], floats(48)),
                ("m.weight_zero_point", "I32", &[3, 1, 2], bytes(24, 6)),
            ],
        ),
    ];
    for (name, tensors) in cases {
        let (values, made, copied) = modules(&tensors).expect(name);
        assert_eq!((made, copied), (0, 0), "{name}");
        assert_eq!(values, apart(&tensors), "{name}");
        assert!(values[..512] != values[512..1024], "{name}: matrices are not the same");
    }
}

#[test]
fn stacks_that_do_not_fit_are_named() {
    let mlx = |words: usize, groups: usize| -> Vec<Tensor> {
        let shape = |cols: usize| -> &'static [usize] { vec![3, 8, cols].leak() };
        vec![
            ("m.weight", "U32", shape(words), bytes(96 * words, 2)),
            ("m.scales", "F32", shape(groups), f32s(&vec![1.0; 24 * groups])),
            ("m.biases", "F32", shape(groups), f32s(&vec![1.0; 24 * groups])),
        ]
    };
    let error = |tensors: &[Tensor]| modules(tensors).expect_err("refused");
    assert!(modules(&mlx(8, 2)).is_ok());
    let text = error(&mlx(9, 2));
    assert!(text.contains("`m.weight`: shape: expected [8, 8] for each of 3, found [8, 9]"), "{text}");
    let mut few = mlx(8, 2);
    few[1] = ("m.scales", "F32", &[2, 8, 2], f32s(&[1.0; 32]));
    let text = error(&few);
    assert!(text.contains("`m.scales`: shape: expected [8, 1] for each of 3, found [2, 8, 2]"), "{text}");

    // One of 8 bits beside two of 4.
    let tensors: Vec<Tensor> = vec![
        ("a.weight", "U32", &[8, 8], bytes(256, 1)),
        ("a.scales", "F32", &[8, 1], f32s(&[1.0; 8])),
        ("a.biases", "F32", &[8, 1], f32s(&[1.0; 8])),
        ("b.weight", "U32", &[8, 16], bytes(512, 1)),
        ("b.scales", "F32", &[8, 1], f32s(&[1.0; 8])),
        ("b.biases", "F32", &[8, 1], f32s(&[1.0; 8])),
    ];
    let (_dir, checkpoint) = open(&tensors, "{}");
    let pair = ["a", "b"].map(|name| (checkpoint.at(name), 8));
    let text = stacked(&pair, 64).expect_err("two formats").to_string();
    assert!(
        text.contains("`b`: not supported: int8rowzo.f32 beside int4rowzo.f32 of `a` in one stack"),
        "{text}"
    );

    // Rows and columns exchanged, of codes that kernels have no use for that way.
    let tensors: Vec<Tensor> = vec![
        ("e.down_proj", "I8", &[3, 64, 8], bytes(1536, 1)),
        ("e.down_proj_weight_scale", "F32", &[3, 8, 1], f32s(&[1.0; 24])),
    ];
    let (_dir, checkpoint) = open(&tensors, "{}");
    let text =
        checkpoint.at("e").parameter("down_proj", 0, 3, true).linear(8, 64, false).expect_err("turned");
    assert!(text.to_string().contains("`e.down_proj`: not supported: rows and columns exchanged"), "{text}");
    let tensors: Vec<Tensor> = vec![
        ("e.down_proj", "F8_E4M3", &[3, 64, 8], vec![1; 1536]),
        ("e.down_proj_scale_inv", "F32", &[3, 5, 8], f32s(&[1.0; 120])),
    ];
    let (_dir, checkpoint) = open(&tensors, "{}");
    let text =
        checkpoint.at("e").parameter("down_proj", 0, 3, true).linear(8, 64, false).expect_err("blocks");
    assert!(
        text.to_string().contains("`e.down_proj_scale_inv`: shape: [5, 8] scales of [64, 8] weights"),
        "{text}"
    );
}

/// Integers whose zero points are all the centre go beside others: as if they had them stored.
#[test]
fn zero_points_of_one_are_those_of_all() {
    let gptq = |name: &'static str, zeros: i32| -> Vec<Tensor> {
        let name = |last: &str| -> &'static str { format!("{name}.{last}").leak() };
        vec![
            (name("qweight"), "I32", &[8, 8], bytes(256, zeros as u32 as usize % 97)),
            (name("qzeros"), "I32", &[2, 1], i32s(&[zeros; 2])),
            (name("scales"), "F32", &[2, 8], f32s(&[0.5; 16])),
            (name("g_idx"), "I32", &[64], i32s(&[0; 64])),
        ]
    };
    let all: Vec<Tensor> = [gptq("a", 0x7777_7777), gptq("b", 0x1234_5678)].concat();
    let (_dir, checkpoint) = open(&all, r#"{"quantization_config":{"quant_method":"gptq","bits":4}}"#);
    let one = |name: &str| checkpoint.at(name).linear(8, 64, false).expect(name);
    assert_eq!(["a", "b"].map(|name| one(name).format().to_string()), ["int4g32.f32", "int4g32z.f32"]);
    let pair = ["a", "b"].map(|name| (checkpoint.at(name), 8));
    let both = stacked(&pair, 64).expect("one matrix");
    assert_eq!(both.format().to_string(), "int4g32z.f32");
    assert_eq!(decoded(&both), ["a", "b"].map(|name| decoded(&one(name))).concat());
}

/// Codes in GPTQModel's planes: 32 of them are `bits` words, of which the first hold the lower bits.
fn planes(codes: &[u32], bits: usize) -> Vec<u32> {
    let widths: &[usize] = match bits {
        3 => &[2, 1],
        5 => &[4, 1],
        6 => &[4, 2],
        _ => &[4, 2, 1],
    };
    let mut words = Vec::new();
    for block in codes.chunks(32) {
        let mut low = 0;
        for &width in widths {
            for some in block.chunks(32 / width) {
                let field = |(i, code): (usize, &u32)| (code >> low & ((1 << width) - 1)) << (i * width);
                words.push(some.iter().enumerate().map(field).sum());
            }
            low += width;
        }
        assert_eq!(low, bits);
    }
    words
}

#[test]
fn gptq_in_planes() {
    let (n, k, groups) = (32, 64, 2);
    for (bits, format) in [(5, "gptq_p"), (6, "gptq"), (7, "gptq_p"), (3, "gptq_p")] {
        let code = |row: usize, column: usize| ((row * 37 + column * 11 + row * column) % (1 << bits)) as u32;
        let zero = |row: usize, group: usize| ((row * 5 + group * 3 + 1) % (1 << bits)) as u32;
        let columns: Vec<Vec<u32>> = (0..n)
            .map(|row| planes(&(0..k).map(|column| code(row, column)).collect::<Vec<_>>(), bits))
            .collect();
        let codes: Vec<i32> = (0..k * bits / 32)
            .flat_map(|line| columns.iter().map(move |column| column[line] as i32))
            .collect();
        let zeros: Vec<i32> = (0..groups)
            .flat_map(|group| planes(&(0..n).map(|row| zero(row, group)).collect::<Vec<_>>(), bits))
            .map(|word| word as i32)
            .collect();
        let shape = |rows: usize, cols: usize| -> &'static [usize] { vec![rows, cols].leak() };
        let tensors: Vec<Tensor> = vec![
            ("p.qweight", "I32", shape(k * bits / 32, n), i32s(&codes)),
            ("p.qzeros", "I32", shape(groups, n * bits / 32), i32s(&zeros)),
            ("p.scales", "F32", shape(groups, n), f32s(&vec![0.25; groups * n])),
            ("p.g_idx", "I32", shape(k, 1), i32s(&vec![0; k])),
        ];
        let tensors: Vec<Tensor> = tensors
            .into_iter()
            .map(|t| if t.0 == "p.g_idx" { ("p.g_idx", "I32", &[64][..], t.3) } else { t })
            .collect();
        let config = format!(
            r#"{{"quantization_config":{{"quant_method":"gptq","bits":{bits},"checkpoint_format":"{format}","group_size":32}}}}"#
        );
        let (_dir, checkpoint) = open(&tensors, &config);
        let w = checkpoint.at("p").linear(n, k, false).unwrap_or_else(|error| panic!("{bits} bits: {error}"));
        let value =
            |row: usize, column: usize| 0.25 * (code(row, column) as f32 - zero(row, column / 32) as f32);
        let expected: Vec<f32> =
            (0..n).flat_map(|row| (0..k).map(move |column| value(row, column))).collect();
        assert_eq!(decoded(&w), expected, "{bits} bits");
        // Planes hold blocks of 32.
        let (_dir, checkpoint) = open(
            &[
                ("p.qweight", "I32", &[10, 8], vec![0; 320]),
                ("p.qzeros", "I32", &[1, 2], vec![0; 8]),
                ("p.scales", "F32", &[1, 8], f32s(&[1.0; 8])),
                ("p.g_idx", "I32", &[64], vec![0; 256]),
            ],
            r#"{"quantization_config":{"quant_method":"gptq","bits":5}}"#,
        );
        let text = checkpoint.at("p").linear(8, 64, false).expect_err("8 rows").to_string();
        assert!(text.contains("`p`: not supported: GPTQ of 5 bits in planes: 8 x 64 weights"), "{text}");
    }
}

/// AutoRound names its method alone; layouts are those of other libraries, zero points those of `packing_format`.
#[test]
fn auto_round() {
    let gptq = || -> Vec<Tensor> {
        vec![
            ("p.qweight", "I32", &[8, 8], vec![0x99; 256]),
            ("p.qzeros", "I32", &[1, 1], vec![0x77; 4]),
            ("p.scales", "F32", &[1, 8], f32s(&[1.0; 8])),
        ]
    };
    let first = |tensors: &[Tensor], fields: &str| -> Result<f32, String> {
        let config =
            format!(r#"{{"quantization_config":{{"quant_method":"auto-round",{fields}"sym":true}}}}"#);
        let (_dir, checkpoint) = open(tensors, &config);
        checkpoint.at("p").linear(8, 64, false).map(|w| decoded(&w)[0]).map_err(|error| error.to_string())
    };
    let bits = r#""bits":4,"group_size":64,"#;
    for (packing, expected) in [
        (r#""packing_format":"auto_round:auto_gptq","#, 1.0),
        (r#""backend":"auto_round:gptq:exllamav2","#, 1.0),
        (r#""packing_format":"auto_round:gptqmodel","#, 2.0),
        (r#""packing_format":"auto_round","#, 2.0),
    ] {
        assert_eq!(first(&gptq(), &format!("{bits}{packing}")), Ok(expected), "{packing}");
    }
    let awq: Vec<Tensor> = vec![
        ("p.qweight", "I32", &[64, 1], vec![0x99; 256]),
        ("p.qzeros", "I32", &[1, 1], vec![0x77; 4]),
        ("p.scales", "F16", &[1, 8], [0, 0x3c].repeat(8)),
    ];
    assert_eq!(first(&awq, r#""bits":4,"packing_format":"auto_round:auto_awq","#), Ok(2.0));
    // FP8, one scale a row and in blocks.
    let fp8 = |name: &'static str, shape: &'static [usize], count: usize| -> Vec<Tensor> {
        vec![
            ("p.weight", "F8_E4M3", &[8, 64], vec![0x38; 512]),
            (name, "BF16", shape, [0, 0x40].repeat(count)),
        ]
    };
    let fields = r#""bits":8,"data_type":"fp","fmt":"e4m3","packing_format":"auto_round:fp8_static","#;
    assert_eq!(first(&fp8("p.weight_scale", &[8], 8), fields), Ok(2.0));
    assert_eq!(first(&fp8("p.weight_scale", &[1], 1), fields), Ok(2.0));
    assert_eq!(first(&fp8("p.weight_scale_inv", &[1, 1], 1), fields), Ok(2.0));
    let mut with_zeros = fp8("p.weight_scale", &[8], 8);
    with_zeros.push(("p.weight_zp", "BF16", &[8], vec![0; 16]));
    let text = first(&with_zeros, fields).expect_err("zero points");
    assert!(text.contains("`p`: not supported: FP8 with zero points (weight_zp)"), "{text}");
    // Codes of other kinds under the names of MXFP4, and rotations.
    let mx: Vec<Tensor> = vec![
        ("p.weight_packed", "U8", &[8, 32], vec![0x22; 256]),
        ("p.weight_scale", "U8", &[8, 2], vec![128; 16]),
    ];
    assert_eq!(first(&mx, r#""bits":4,"data_type":"mx_fp","#), Ok(2.0));
    let text = first(&mx, r#""bits":4,"data_type":"mx_int","#).expect_err("integers");
    assert!(text.contains("weights of AutoRound's `mx_int`"), "{text}");
    let text = first(&gptq(), r#""bits":4,"rotation_config":{"type":"hadamard"},"#).expect_err("rotated");
    assert!(text.contains("rotated weights"), "{text}");
}

/// Groups of a file that the configuration does not name: their shapes tell, unless two sizes would do.
#[test]
fn shapes_tell_where_no_target_matches() {
    let read = |k: usize, groups: usize, fields: &str| -> Result<String, String> {
        let shape = |cols: usize| -> &'static [usize] { vec![8, cols].leak() };
        let tensors: Vec<Tensor> = vec![
            ("p.weight_packed", "I32", shape(k / 8), vec![0; 4 * k]),
            ("p.weight_scale", "F32", shape(groups), f32s(&vec![1.0; 8 * groups])),
        ];
        let config = format!(
            r#"{{"quantization_config":{{"quant_method":"compressed-tensors","format":"pack-quantized",
            "config_groups":{{"g":{{"targets":["re:elsewhere"],{fields}"weights":{{"num_bits":4,"type":"int","group_size":64}}}}}}}}}}"#
        );
        let (_dir, checkpoint) = open(&tensors, &config);
        let read = checkpoint.at("p").linear(8, k, false);
        read.map(|w: Weights| w.format().to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(read(256, 4, ""), Ok("int4g64.f32".into()));
    assert_eq!(read(256, 2, ""), Ok("int4g128.f32".into()));
    assert_eq!(read(256, 1, ""), Ok("int4row.f32".into()));
    // Two groups of 96, or one of 128 and one of 64.
    let text = read(192, 2, "").expect_err("two sizes");
    assert!(text.contains("2 groups of 192 weights") && text.contains("[96, 128] would"), "{text}");
    let text = read(256, 4, r#""input_activations":{"num_bits":8},"#).expect_err("activations");
    assert!(text.contains("quantized activations"), "{text}");

    let fp8 = |k: usize, cols: usize| {
        let shape = |cols: usize| -> &'static [usize] { vec![8, cols].leak() };
        let tensors: Vec<Tensor> = vec![
            ("p.weight_scale", "F32", shape(cols), f32s(&vec![1.0; 8 * cols])),
            ("p.weight", "F8_E4M3", shape(k), vec![0; 8 * k]),
        ];
        let config = r#"{"quantization_config":{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{
            "g":{"targets":["re:elsewhere"],"weights":{"num_bits":8,"type":"float","strategy":"channel"}}}}}"#;
        let (_dir, checkpoint) = open(&tensors, config);
        let w = checkpoint.at("p").linear(8, k, false).map_err(|error| error.to_string())?;
        let scales: Option<&View> = w.parts()[0].planes.get(1);
        assert!(scales.is_some_and(|scales| scales.shape() == [8, cols]));
        Ok::<_, String>(w.format().to_string())
    };
    assert_eq!(fp8(192, 1), Ok("fp8row.f32".into()));
    assert_eq!(fp8(256, 2), Ok("fp8g128.f32".into()));
    let text = fp8(192, 2).expect_err("two sizes");
    assert!(
        text.contains("`p.weight_scale`: shape: [8, 2] scales of [8, 192] weights fit neither"),
        "{text}"
    );
}
