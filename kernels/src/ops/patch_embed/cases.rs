//! Conformance cases.

use super::PatchEmbed;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::{Code, DType, Format, Grouped, Zero};
use crate::{View, Weights};

/// Sizes and types of a case.
#[derive(Clone, Copy)]
struct Shape {
    images: usize,
    height: usize,
    width: usize,
    patch: usize,
    d: usize,
    bytes: bool,
    w: Format,
    out: DType,
    /// Elements between rows of the result and of the position embeddings.
    gap: usize,
}

/// Every grey level at random.
fn pixels(cx: &mut CaseCx, s: Shape) -> View {
    let Shape { images, height, width, .. } = s;
    if !s.bytes {
        return cx.random(&[images, 3, height, width], DType::F32, Fill::Spiky);
    }
    let levels: Vec<f64> = (0..images * height * width * 3).map(|_| cx.below(256) as f64).collect();
    cx.values(&[images, height, width, 3], DType::U8, &levels)
}

fn op(cx: &mut CaseCx, s: Shape, bias: bool) -> PatchEmbed {
    let patches = s.images * (s.height / s.patch) * (s.width / s.patch);
    PatchEmbed {
        pixels: pixels(cx, s),
        w: cx.weights(s.w, s.d, 3 * s.patch * s.patch, bias),
        pos: None,
        pos_ids: None,
        mean: [127.5, 116.28, 103.53],
        std: [127.5, 57.375, 58.395],
        patch: s.patch,
        out: cx.output_gapped(&[patches, s.d], s.out, s.gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<PatchEmbed>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let mut push = |name: &str, s: Shape, op: PatchEmbed| {
        let Shape { images, height, width, patch, d, bytes, w, out, .. } = s;
        let pixels = if bytes { "u8" } else { "f32" };
        let name = format!("{name}: {images}x{height}x{width} {pixels} by {patch} to {d}, {w} to {out}");
        all.push(Case { name, op });
    };
    let base = Shape {
        images: 1,
        height: 32,
        width: 32,
        patch: 16,
        d: 24,
        bytes: true,
        w: Format::Dense(F32),
        out: F32,
        gap: 0,
    };
    for bytes in [true, false] {
        for (images, height, width, patch, d) in [
            (0, 28, 28, 14, 8),
            (1, 5, 40, 8, 8),
            (2, 1, 1, 1, 1),
            (1, 16, 16, 16, 1),
            (3, 17, 31, 8, 3),
            (1, 43, 61, 14, 5),
            (2, 65, 47, 16, 33),
            (1, 56, 42, 14, 64),
            (1, 100, 36, 4, 31),
            (2, 27, 25, 3, 16),
            (1, 48, 32, 16, 0),
        ] {
            let s = Shape { images, height, width, patch, d, bytes, ..base };
            push("sizes", s, op(cx, s, true));
        }
        let codes = |code, group, zero| Format::Grouped(Grouped { code, group, zero, scale: BF16 });
        let dense = [F32, BF16, F16].map(Format::Dense);
        for w in dense.into_iter().chain([
            codes(Code::Int8, 128, Zero::None),
            codes(Code::Int4, 32, Zero::Codes),
            codes(Code::Fp8, 32, Zero::None),
            codes(Code::Nf4, 64, Zero::None),
            codes(Code::Int8, 32, Zero::Float),
        ]) {
            for out in [F32, BF16, F16] {
                let s = Shape { height: 35, width: 44, patch: 14, d: 37, bytes, w, out, gap: 3, ..base };
                push("types", s, op(cx, s, out != F16));
            }
        }
        for pos in [F32, BF16, F16] {
            let s = Shape { images: 2, height: 40, width: 30, patch: 10, d: 41, bytes, gap: 2, ..base };
            let table = cx.random_gapped(&[13, 41], pos, Fill::Normal(1.0), 5);
            let plain = op(cx, s, true);
            push("positions", s, PatchEmbed { pos: Some(table.clone()), ..plain });
            let ids: Vec<i32> = (0..24).map(|i| if i < 2 { 12 * i } else { cx.below(13) as i32 }).collect();
            let ids = Some(cx.ints(&[24], &ids));
            let plain = op(cx, s, false);
            push("position ids", s, PatchEmbed { pos: Some(table), pos_ids: ids, ..plain });
        }
    }
    // Filters of 16 bits whose rows begin at 16 bytes, whatever the size of a channel.
    for (w, patch, d, out, gap) in [
        (BF16, 1, 5, F32, 0),
        (BF16, 3, 10, BF16, 1),
        (BF16, 4, 130, F32, 2),
        (BF16, 14, 37, BF16, 3),
        (F16, 14, 130, F16, 0),
    ] {
        let k = 3 * patch * patch;
        let filters = cx.random_gapped(&[d, k], w, Fill::Normal(0.07), k.next_multiple_of(8) - k);
        let bias = cx.random(&[d], w, Fill::Normal(1.0));
        if let Ok(filters) = Weights::dense(filters, Some(bias)) {
            let (height, width) = (3 * patch + 1, 23 * patch);
            let s = Shape { images: 2, height, width, patch, d, w: Format::Dense(w), out, gap, ..base };
            let plain = op(cx, s, false);
            let pos = Some(cx.random_gapped(&[4 * 23, d], out, Fill::Normal(1.0), gap));
            push("aligned filters", s, PatchEmbed { w: filters, pos, ..plain });
        }
    }
    // Filters whose rows lie apart, and a stack of two tensors with a bias on one.
    let wide = cx.random_gapped(&[24, 192], F32, Fill::Normal(0.07), 13);
    if let Ok(w) = Weights::dense(wide, None) {
        let s = Shape { patch: 8, ..base };
        let plain = op(cx, s, true);
        push("strided filters", s, PatchEmbed { w, ..plain });
    }
    let parts = [(11, true), (13, false)].map(|(rows, bias)| cx.weights(base.w, rows, 768, bias));
    if let Ok(w) = Weights::stack(parts) {
        let plain = op(cx, base, true);
        push("stacked filters", base, PatchEmbed { w, ..plain });
    }
    // SmolVLM-256M: one tile.
    let s = Shape { height: 512, width: 512, d: 768, w: Format::Dense(BF16), ..base };
    let pos = Some(cx.random(&[1024, 768], BF16, Fill::Normal(0.1)));
    let plain = op(cx, s, true);
    push("a tile", s, PatchEmbed { pos, ..plain });
    all
}
