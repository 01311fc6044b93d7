//! Conformance cases.

use super::{Activation, Math, Matmul, RowNorm};
use crate::buffer::Weights;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::{DType, Format};

const ACTS: [Activation; 6] = [
    Activation::None,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::QuickGelu,
    Activation::Silu,
    Activation::Relu,
];
const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const MATHS: [Math; 3] = [Math::Exact, Math::Bf16, Math::Int8];

/// Grouped formats: each bit width with each group length, zero points and scale type at least once; groups that are no
/// multiple of a vector or a word too.
const GROUPED: [&str; 42] = [
    "int8g32",
    "int8g64.f16",
    "int8g128",
    "int8g128z",
    "int8g256.f32",
    "int8row",
    "int8rowz.f16",
    "int8g32z.f32",
    "int8g20",
    "int4g32",
    "int4g32z",
    "int4g64",
    "int4g64z.f16",
    "int4g128",
    "int4g128z.f32",
    "int4g256",
    "int4row.f16",
    "int4rowz",
    "int4g16",
    "int4g12z",
    "fp8g128",
    "fp8g32.f32",
    "fp8g64.f16",
    "fp8row",
    "fp8row.f32",
    "fp8g20",
    "fp8g32.e8m0",
    "fp8g128.e8m0",
    "fp4g16.e4m3",
    "fp4g32.e8m0",
    "fp4g64.f32",
    "fp4row.f16",
    "fp4g12",
    "nf4g64.f32",
    "nf4g32.f16",
    "bnb4g64.f32",
    "int4g64zo",
    "int4g32zo.f16",
    "int4g64zf.f16",
    "int4g20zf.f32",
    "int8g64zo.f32",
    "int8g128zf",
];

/// How an operation differs from a plain dense product.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) x: DType,
    pub(super) out: DType,
    pub(super) fill: Fill,
    /// Elements between rows of x, out and residual.
    pub(super) gaps: [usize; 3],
    pub(super) bias: bool,
    pub(super) act: Activation,
    pub(super) gated: bool,
    pub(super) residual: Option<DType>,
    pub(super) math: Math,
    /// Whether rows of x are normalized.
    pub(super) norm: bool,
}

impl Shape {
    pub(super) fn plain(m: usize, n: usize, k: usize) -> Self {
        Self {
            m,
            n,
            k,
            x: DType::F32,
            out: DType::F32,
            fill: Fill::Normal(1.0),
            gaps: [0; 3],
            bias: false,
            act: Activation::None,
            gated: false,
            residual: None,
            math: Math::Exact,
            norm: false,
        }
    }

    /// The op, with weights stacked from parts of these shares of `n`.
    pub(super) fn op(self, cx: &mut CaseCx, format: Format, shares: &[usize]) -> Matmul {
        let all: usize = shares.iter().sum();
        let mut rows: Vec<usize> = shares.iter().map(|share| self.n * share / all).collect();
        rows[0] += self.n - rows.iter().sum::<usize>();
        // Only some of the parts have a bias, as of Qwen's projections.
        let parts: Vec<Weights> = rows
            .iter()
            .enumerate()
            .map(|(i, &n)| cx.weights(format, n, self.k, self.bias && i != 1))
            .collect();
        let w = Weights::stack(parts).expect("parts of one format and k");
        let n_out = if self.gated { self.n / 2 } else { self.n };
        let residual = self
            .residual
            .map(|dtype| cx.random_gapped(&[self.m, n_out], dtype, Fill::Normal(1.0), self.gaps[2]));
        let norm = self.norm.then(|| RowNorm {
            weight: cx.random(&[self.k], self.out, Fill::Normal(1.0)),
            weight_offset: if self.bias { 1.0 } else { 0.0 },
            eps: 1e-5,
        });
        Matmul {
            norm,
            x: cx.random_gapped(&[self.m, self.k], self.x, self.fill, self.gaps[0]),
            w,
            act: self.act,
            gated: self.gated,
            residual,
            heads: None,
            out: cx.output_gapped(&[self.m, n_out], self.out, self.gaps[1]),
            math: self.math,
        }
    }
}

pub(super) fn format(text: &str) -> Format {
    text.parse().expect("a format of this table")
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Matmul>> {
    let mut all = Vec::new();
    let mut add = |name: String, op: Matmul| all.push(Case { name, op });
    edges(cx, &mut add);
    formats(cx, &mut add);
    epilogues(cx, &mut add);
    halves(cx, &mut add);
    summands(cx, &mut add);
    aligned(cx, &mut add);
    large(cx, &mut add);
    rounded_to_fp8(cx, &mut add);
    normalized(cx, &mut add);
    rounds(cx, &mut add);
    along_n(cx, &mut add);
    super::head_cases::heads(cx, &mut add);
    models(cx, &mut add);
    all
}

/// Sizes around tiles and vectors.
fn edges(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    const MS: [usize; 12] = [0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 37];
    const NS: [usize; 10] = [0, 1, 3, 4, 15, 16, 17, 31, 33, 67];
    const KS: [usize; 12] = [0, 1, 7, 8, 15, 16, 17, 31, 64, 127, 129, 257];
    let formats = [
        "f32",
        "bf16",
        "f16",
        "int8g32",
        "int4g32",
        "int8g128z",
        "int4row",
        "int4g64",
        "fp8g64",
        "fp4g16.e4m3",
    ];
    for (i, &m) in MS.iter().enumerate() {
        for (j, &n) in NS.iter().enumerate() {
            for pick in 0..3 {
                let k = KS[(i + 5 * j + 4 * pick) % KS.len()];
                let text = formats[(i + 3 * j + 5 * pick) % formats.len()];
                let shape = Shape { math: MATHS[(i + j + pick) % 3], ..Shape::plain(m, n, k) };
                add(format!("edge {m}x{n}x{k} {text}"), shape.op(cx, format(text), &[1]));
            }
        }
    }
}

/// Planes along `n`, as files of GPTQ and AWQ have them: strips and pieces that end early, whole rows, parts, and few and many rows of x.
fn along_n(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    const FORMATS: [&str; 12] = [
        "int4g128z.f16@awq",
        "int4g64.f16@awq",
        "int4rowz@awq",
        "int4g32zf.f32@awq",
        "int4g128.f16@gptq",
        "int4g32z.f16@gptq",
        "int8g128zf.f16@gptq",
        "int8row.f32@gptq",
        "int4row@gptq",
        "int4g128.f16@act-order",
        "int4g32z.f16@act-order",
        "int8g64zf@act-order",
    ];
    for (i, text) in FORMATS.iter().enumerate() {
        let sizes = [(1, 96, 256), (3, 608, 1056), (5, 2144, 2304), (19, 64, 608), (1, 4128, 96)];
        for (j, (m, n, k)) in sizes.into_iter().enumerate() {
            // The long ones once for each layout.
            if j == 2 && i % 4 != 0 || j == 4 && i % 4 != 1 {
                continue;
            }
            let shape = Shape {
                bias: j == 1,
                gated: j == 1 && i % 2 == 0,
                act: ACTS[(i + j) % ACTS.len()],
                residual: (j == 0).then_some(DType::F32),
                math: MATHS[(i + j) % 3],
                x: FLOATS[(i + j) % 3],
                ..Shape::plain(m, n, k)
            };
            let shares: &[usize] = if j == 1 { &[9, 5, 5] } else { &[1] };
            add(format!("along n {text} {m}x{n}x{k}"), shape.op(cx, format(text), shares));
        }
    }
    // What no kernel reads in whole words.
    for (text, n, k) in [("int4g20.f16@gptq", 45, 64), ("int8g128@gptq", 17, 331), ("int4g48z@awq", 40, 100)]
    {
        add(format!("along n {text} {n}x{k}"), Shape::plain(3, n, k).op(cx, format(text), &[1]));
    }
}

/// Each storage format under each kind of math, with rows of `k` that end inside a group and inside a word.
fn formats(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let plain = |text: &str| text.starts_with("int") && !text.contains("zo") && !text.contains("zf");
    for (number, text) in GROUPED.iter().chain(&["f32", "bf16", "f16"]).enumerate() {
        for (i, math) in MATHS.into_iter().enumerate() {
            for (j, k) in [512, 331, 1024 + 37].into_iter().enumerate() {
                // What differs from plain integers in decoders alone gets each kind of math and each length once.
                if !plain(text) && format(text).dense().is_none() && (i + j + number) % 3 != 0 {
                    continue;
                }
                let m = [1, 3, 8, 19][(i + 2 * j + number) % 4];
                let fill = if j == 1 { Fill::Spiky } else { Fill::Normal(1.0) };
                let shape = Shape { math, fill, bias: j == 2, ..Shape::plain(m, 45, k) };
                add(format!("format {text} m {m} k {k} {math:?}"), shape.op(cx, format(text), &[1]));
            }
        }
    }
}

/// Activations, gates, residuals, biases, types, strides and stacked parts.
fn epilogues(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let formats = ["f32", "bf16", "f16", "int8g64", "int4g32z", "int8g128", "int4g128.f16"];
    let mut i = 0;
    for act in ACTS {
        for gated in [false, true] {
            for shares in [&[1usize][..], &[1, 1], &[3, 1, 1]] {
                i += 1;
                let shape = Shape {
                    m: [1, 4, 6, 20][i % 4],
                    n: [74, 130][i % 2],
                    k: [256, 300][i / 2 % 2],
                    x: FLOATS[i % 3],
                    out: FLOATS[i / 3 % 3],
                    fill: if i % 5 == 0 { Fill::Spiky } else { Fill::Normal(1.0) },
                    gaps: [[0, 0, 0], [3, 5, 7], [16, 0, 1]][i % 3],
                    bias: i % 4 != 0,
                    act,
                    gated,
                    residual: (i % 3 != 0).then(|| FLOATS[i / 2 % 3]),
                    math: MATHS[i / 2 % 3],
                    norm: false,
                };
                let text = formats[i % formats.len()];
                let name = format!("epilogue {act:?} gated {gated} parts {} {text}", shares.len());
                add(name, shape.op(cx, format(text), shares));
            }
        }
    }
    for (m, gap) in [(1, 0), (5, 0), (33, 9)] {
        let shape = Shape { bias: true, gaps: [0, gap, 0], ..Shape::plain(m, 50, 96) };
        let mut op = shape.op(cx, format("bf16"), &[1]);
        // The residual in place: the result's memory holds it before.
        op.out = cx.random_gapped(&[m, 50], DType::F32, Fill::Normal(1.0), gap);
        op.residual = Some(op.out.clone());
        add(format!("residual in place, m {m}"), op);
    }
}

/// Activations of f16, which kernels may multiply as they are.
fn halves(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let formats = ["f16", "bf16", "f32", "int8g64", "int4g32z", "int4g12", "int8row"];
    for (i, text) in formats.into_iter().enumerate() {
        for (j, m) in [3, 21, 70].into_iter().enumerate() {
            let shape = Shape {
                x: DType::F16,
                out: FLOATS[(i + j) % 3],
                math: if i < 2 { Math::Exact } else { MATHS[1 + (i + j) % 2] },
                gated: (i + j) % 2 == 1,
                act: ACTS[(i + j) % ACTS.len()],
                bias: j == 1,
                gaps: [8 * j, 0, 0],
                ..Shape::plain(m, 90, [264, 129, 640][(i + j) % 3])
            };
            add(format!("half m {m} {text}"), shape.op(cx, format(text), &[1]));
        }
    }
}

/// Codes whose values are sums of 16-bit floats, zero points that are floats or offsets, and groups of 16, with x of each type.
fn summands(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    const FORMATS: [&str; 12] = [
        "nf4g64.f32",
        "nf4g16.f16",
        "bnb4g64.f32",
        "bnb4row.f16",
        "int4g64zo",
        "int4rowzf.f16",
        "int8g32zf.f32",
        "int8g128zo",
        "int4g16z",
        "int8g16",
        "fp4g16.e4m3",
        "fp8g16.f16",
    ];
    for (i, text) in FORMATS.into_iter().enumerate() {
        for (j, (m, k)) in [(9, 640), (40, 331), (70, 176)].into_iter().enumerate() {
            let shape = Shape {
                x: FLOATS[(i + j) % 3],
                out: FLOATS[i % 3],
                math: if (i + j) % 4 < 2 { Math::Exact } else { Math::Bf16 },
                fill: if j == 1 { Fill::Spiky } else { Fill::Normal(1.0) },
                gated: i % 3 == j,
                act: ACTS[(i + j) % ACTS.len()],
                bias: j == 2,
                gaps: [8 * j, 0, 0],
                ..Shape::plain(m, 90, k)
            };
            add(format!("summands m {m} {text}"), shape.op(cx, format(text), &[1]));
        }
    }
}

/// Operands of 16 bits whose rows begin at multiples of 16 bytes, as tensor cores and copy engines like them: sizes around their
/// tiles, what follows a product, and more tiles than a device runs at once.
fn aligned(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    use DType::{BF16, F16, F32};
    let like = |x, out, shape: Shape| Shape { x, out, gaps: [8, 16, 8], ..shape };
    let plain = Shape::plain;
    let all: [(&str, Shape, &[usize]); 9] = [
        ("bf16", like(BF16, BF16, plain(1, 8, 8)), &[1]),
        ("f16", Shape { bias: true, ..like(F16, F32, plain(64, 128, 64)) }, &[1]),
        (
            "bf16",
            Shape {
                bias: true,
                act: Activation::GeluTanh,
                residual: Some(BF16),
                ..like(BF16, BF16, plain(129, 264, 200))
            },
            &[1],
        ),
        (
            "bf16",
            Shape {
                bias: true,
                act: Activation::Silu,
                gated: true,
                fill: Fill::Spiky,
                ..like(BF16, BF16, plain(70, 272, 328))
            },
            &[1, 1],
        ),
        (
            "f16",
            Shape {
                act: Activation::GeluErf,
                gated: true,
                residual: Some(F16),
                ..like(F16, F16, plain(200, 528, 96))
            },
            &[1],
        ),
        ("f16", Shape { act: Activation::QuickGelu, ..like(F16, BF16, plain(65, 120, 72)) }, &[1]),
        ("bf16", Shape { residual: Some(BF16), ..like(BF16, BF16, plain(40, 576, 1544)) }, &[1]),
        (
            "bf16",
            Shape { math: Math::Bf16, residual: Some(F32), ..like(F32, F32, plain(33, 136, 264)) },
            &[1],
        ),
        ("bf16", Shape { bias: true, ..like(BF16, BF16, plain(260, 8200, 136)) }, &[1]),
    ];
    for (text, shape, shares) in all {
        let Shape { m, n, k, .. } = shape;
        add(format!("aligned {m}x{n}x{k} {text}"), shape.op(cx, format(text), shares));
    }
}

/// Enough tiles for large ones, so few of such long rows that k is split, long rows of x, and more sums than are kept at
/// once.
fn large(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    for (i, text) in ["bf16", "int4g32", "int8g64z"].into_iter().enumerate() {
        let shape = Shape { x: FLOATS[i], math: MATHS[i], bias: true, ..Shape::plain(130, 8720, 32) };
        add(format!("many tiles {text}"), shape.op(cx, format(text), &[1]));
        let shape = Shape { x: FLOATS[i], gated: i > 0, bias: true, ..Shape::plain(40, 130, 3040) };
        let shares: &[usize] = if i < 2 { &[1] } else { &[1, 1] };
        add(format!("long rows {text}"), shape.op(cx, format(text), shares));
    }
    // Many rows of x with codes in groups whose rows begin at multiples of 16 bytes.
    for (i, text) in ["int4g128z", "int8row", "int4g64.f16", "int8g32z.f32", "fp8g128.f32", "fp8row"]
        .into_iter()
        .enumerate()
    {
        let shape = Shape {
            x: [DType::BF16, DType::BF16, DType::F16, DType::F32, DType::BF16, DType::F16][i],
            out: FLOATS[1 + i % 2],
            gated: i % 3 == 0,
            act: ACTS[i % ACTS.len()],
            bias: i < 3,
            residual: (i < 2).then_some(DType::BF16),
            ..Shape::plain([150, 70, 140][i / 2], 264, 928)
        };
        add(format!("many rows {text}"), shape.op(cx, format(text), if i == 0 { &[1, 1] } else { &[1] }));
    }
    // A row of x that is larger than an L1 cache.
    for (i, text) in ["int8g128", "int8g64z", "int4g128z", "int4g32"].into_iter().enumerate() {
        let shape = Shape { bias: i == 1, ..Shape::plain(1, 300, [8192, 8300][i % 2]) };
        let shares: &[usize] = if i < 2 { &[1] } else { &[3, 1] };
        add(format!("wide x {text}"), shape.op(cx, format(text), shares));
    }
    let shape = Shape { gated: true, residual: Some(DType::F32), ..Shape::plain(1030, 4100, 8) };
    add("many sums".into(), shape.op(cx, format("bf16"), &[1, 1]));
}

/// 8-bit floats with activations rounded to them: groups and whole rows, sizes around tiles, rows that end inside a group of
/// activations, strides that copies of 16 bytes do not take.
fn rounded_to_fp8(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    use DType::{BF16, F16, F32};
    let plain = |m, n, k| Shape { math: Math::Fp8, ..Shape::plain(m, n, k) };
    let all: [(&str, Shape, &[usize]); 10] = [
        ("fp8row", plain(1, 16, 16), &[1]),
        ("fp8g128.f32", Shape { x: BF16, out: BF16, bias: true, ..plain(64, 128, 256) }, &[1]),
        (
            "fp8g128",
            Shape {
                x: BF16,
                out: BF16,
                act: Activation::Silu,
                gated: true,
                residual: Some(BF16),
                gaps: [8, 16, 8],
                ..plain(70, 272, 400)
            },
            &[1, 1],
        ),
        (
            "fp8row.f32",
            Shape {
                x: F16,
                out: F16,
                act: Activation::GeluErf,
                gated: true,
                bias: true,
                ..plain(130, 264, 528)
            },
            &[1],
        ),
        ("fp8g256.f16", Shape { fill: Fill::Spiky, bias: true, ..plain(33, 136, 912) }, &[3, 1]),
        (
            "fp8row",
            Shape { x: BF16, out: F32, residual: Some(F32), gaps: [3, 5, 7], ..plain(200, 72, 1552) },
            &[1],
        ),
        ("fp8g128", Shape { x: F32, out: BF16, ..plain(9, 90, 2064) }, &[1]),
        ("fp8g64", plain(20, 40, 192), &[1]),
        ("fp8row", plain(20, 40, 150), &[1]),
        ("fp8g128", Shape { x: BF16, out: BF16, ..plain(150, 2200, 144) }, &[1]),
    ];
    for (text, shape, shares) in all {
        let Shape { m, n, k, .. } = shape;
        add(format!("to fp8 {m}x{n}x{k} {text}"), shape.op(cx, format(text), shares));
    }
}

/// Rows of x that are normalized on their way in: few, as of a step of text.
fn normalized(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let formats = ["bf16", "f32", "int4g64z", "int8g128", "fp8g128", "f16", "int4g32", "fp8row.f32"];
    for (i, text) in formats.into_iter().enumerate() {
        for (j, m) in [1, 3, 8].into_iter().enumerate() {
            let shape = Shape {
                x: FLOATS[(i + j) % 3],
                out: FLOATS[i % 3],
                fill: if j == 1 { Fill::Spiky } else { Fill::Normal(1.0) },
                gaps: [[0, 0, 0], [8, 3, 0], [3, 0, 5]][(i + j) % 3],
                bias: j == 2,
                act: if i % 2 == 0 { Activation::Silu } else { Activation::None },
                gated: i % 2 == 0,
                residual: (i == 3).then_some(DType::F32),
                norm: true,
                ..Shape::plain(m, 66, [576, 64, 1152][(i + 2 * j) % 3])
            };
            let shares: &[usize] = if i % 4 < 2 { &[1, 1] } else { &[3, 1, 1] };
            let shares = if i % 2 == 0 { &[1, 1] } else { shares };
            add(format!("normalized m {m} {text}"), shape.op(cx, format(text), shares));
        }
    }
    // Weights that no load of 16 bytes reads: columns of a wider matrix.
    let shape = Shape { norm: true, ..Shape::plain(2, 40, 64) };
    let mut op = shape.op(cx, format("f32"), &[1]);
    let columns = cx.random(&[40, 73], DType::F32, Fill::Normal(0.1)).narrow(1, 1, 64);
    if let Ok(w) = columns.and_then(|view| Weights::dense(view, None)) {
        op.w = w;
        add("normalized m 2, columns of a matrix".into(), op);
    }
}

/// Few rows of x: more columns than the blocks of a large device make at once, and rows that do not fit beside each other.
fn rounds(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let plain = Shape { norm: true, residual: Some(DType::F32), ..Shape::plain(1, 4300, 264) };
    let all: [(&str, Shape, &[usize]); 6] = [
        ("bf16", plain, &[1]),
        ("int4g32z", Shape { gated: true, act: Activation::Silu, m: 2, k: 288, ..plain }, &[1, 1]),
        ("int8row", Shape { norm: false, x: DType::BF16, m: 3, k: 144, ..plain }, &[1]),
        ("f32", Shape { bias: true, m: 5, n: 2200, k: 136, ..plain }, &[2, 1]),
        ("int4g64", Shape { bias: true, m: 7, n: 40, k: 2880, ..plain }, &[1]),
        ("bf16", Shape { x: DType::BF16, m: 6, n: 1760, k: 2600, ..plain }, &[1]),
    ];
    for (text, shape, shares) in all {
        let Shape { m, n, k, .. } = shape;
        add(format!("rounds {m}x{n}x{k} {text}"), shape.op(cx, format(text), shares));
    }
}

/// Rows of SmolVLM-256M.
fn models(cx: &mut CaseCx, add: &mut dyn FnMut(String, Matmul)) {
    let all: [(&str, usize, usize, bool, &[usize]); 4] = [
        ("qkv", 960, 576, false, &[3, 1, 1]),
        ("gate/up", 3072, 576, true, &[1, 1]),
        ("down", 576, 1536, false, &[1]),
        ("head", 49280, 576, false, &[1]),
    ];
    for (name, n, k, gated, shares) in all {
        for (i, text) in ["bf16", "int8g64", "int4g32"].into_iter().enumerate() {
            for m in [1, 40] {
                if name == "head" && m > 1 {
                    continue;
                }
                let shape = Shape {
                    gated,
                    act: if gated { Activation::Silu } else { Activation::None },
                    residual: (name == "down").then_some(DType::F32),
                    math: if i == 2 { Math::Int8 } else { MATHS[m % 2] },
                    ..Shape::plain(m, n, k)
                };
                add(format!("SmolVLM-256M {name} m {m} {text}"), shape.op(cx, format(text), shares));
            }
        }
    }
    for (name, n, k, act) in [
        ("tower qkv", 2304, 768, Activation::None),
        ("tower up", 3072, 768, Activation::GeluTanh),
        ("tower down", 768, 3072, Activation::None),
    ] {
        let shape = Shape { bias: true, act, ..Shape::plain(65, n, k) };
        add(format!("SmolVLM-256M {name}"), shape.op(cx, format("bf16"), &[1]));
    }
}
