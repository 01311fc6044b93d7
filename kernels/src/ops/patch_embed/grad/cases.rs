//! Conformance cases.

use super::PatchEmbedGrad;
use crate::View;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::{F32, U8};

/// Sizes and types of a case.
#[derive(Clone, Copy)]
struct Shape {
    images: usize,
    height: usize,
    width: usize,
    patch: usize,
    d: usize,
    bytes: bool,
    /// Elements between rows of gradients.
    gap: usize,
}

/// Every grey level at random.
fn pixels(cx: &mut CaseCx, s: Shape) -> View {
    let Shape { images, height, width, .. } = s;
    if !s.bytes {
        return cx.random(&[images, 3, height, width], F32, Fill::Spiky);
    }
    let levels: Vec<f64> = (0..images * height * width * 3).map(|_| cx.below(256) as f64).collect();
    cx.values(&[images, height, width, 3], U8, &levels)
}

/// All gradients, with a position for each patch of a picture and three more.
fn full(cx: &mut CaseCx, s: Shape) -> PatchEmbedGrad {
    let each = (s.height / s.patch) * (s.width / s.patch);
    let normal = Fill::Normal(1.0);
    PatchEmbedGrad {
        pixels: pixels(cx, s),
        pos_ids: None,
        mean: [127.5, 116.28, 103.53],
        std: [127.5, 57.375, 58.395],
        patch: s.patch,
        d_out: cx.random_gapped(&[s.images * each, s.d], F32, normal, s.gap),
        d_w: Some(cx.random_gapped(&[s.d, 3 * s.patch * s.patch], F32, normal, 2 * s.gap)),
        d_bias: Some(cx.random(&[s.d], F32, normal)),
        d_pos: Some(cx.random_gapped(&[each + 3, s.d], F32, normal, s.gap)),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<PatchEmbedGrad>> {
    let mut all = Vec::new();
    let mut push = |name: &str, s: Shape, op: PatchEmbedGrad| {
        let Shape { images, height, width, patch, d, bytes, gap } = s;
        let pixels = if bytes { "u8" } else { "f32" };
        let name = format!("{name}: {images}x{height}x{width} {pixels} by {patch} to {d}, gap {gap}");
        all.push(Case { name, op });
    };
    for bytes in [true, false] {
        for (images, height, width, patch, d, gap) in [
            (0, 28, 28, 14, 8, 0),
            (1, 5, 40, 8, 8, 0),
            (2, 1, 1, 1, 1, 0),
            (1, 16, 16, 16, 1, 0),
            (3, 17, 31, 8, 3, 1),
            (1, 43, 61, 14, 5, 0),
            (2, 65, 47, 16, 33, 3),
            (1, 56, 42, 14, 64, 0),
            (1, 100, 36, 4, 31, 2),
            (2, 27, 25, 3, 16, 0),
            (1, 48, 32, 16, 0, 0),
            (3, 75, 60, 2, 67, 0),
        ] {
            let s = Shape { images, height, width, patch, d, bytes, gap };
            push("sizes", s, full(cx, s));
        }
        let s = Shape { images: 2, height: 40, width: 30, patch: 10, d: 41, bytes, gap: 2 };
        let op = full(cx, s);
        let ids: Vec<i32> = (0..24).map(|i| if i < 2 { 14 * i } else { cx.below(15) as i32 }).collect();
        let pos_ids = Some(cx.ints(&[24], &ids));
        push("position ids", s, PatchEmbedGrad { pos_ids, ..op });
        let op = full(cx, s);
        push("d_w alone", s, PatchEmbedGrad { d_bias: None, d_pos: None, ..op });
        let op = full(cx, s);
        push("d_bias alone", s, PatchEmbedGrad { d_w: None, d_pos: None, ..op });
        let op = full(cx, s);
        push("d_pos alone", s, PatchEmbedGrad { d_w: None, d_bias: None, ..op });
    }
    // SmolVLM-256M: one tile.
    let s = Shape { images: 1, height: 512, width: 512, patch: 16, d: 768, bytes: true, gap: 0 };
    push("a tile", s, full(cx, s));
    all
}
