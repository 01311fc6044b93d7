//! Conformance cases.

use super::{ConvForm, ShortConv};
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::sequences::Sequences;
use crate::spec::DType;

/// Sizes and types of a case.
#[derive(Clone, Copy)]
struct Shape {
    channels: usize,
    kernel: usize,
    form: ConvForm,
    bias: bool,
    x: DType,
    out: DType,
    /// Elements between rows of inputs and results.
    gap: usize,
}

/// Sequences of so many rows each: every third begins here, every fifth has no state, the others go on.
pub(in crate::ops) fn sequences(cx: &mut CaseCx, lens: &[usize]) -> Sequences {
    let starts: Vec<i32> = std::iter::once(0)
        .chain(lens.iter().scan(0, |end, &len| {
            *end += len as i32;
            Some(*end)
        }))
        .collect();
    let known = |(i, &len): (usize, &usize)| len as i32 + if i % 3 == 0 { 0 } else { 1 + i as i32 };
    let known: Vec<i32> = lens.iter().enumerate().map(known).collect();
    // Slots in an order of their own, one between left alone.
    let count = lens.len();
    let slot = |i: usize| if i % 5 == 4 { -1 } else { (count - i) as i32 };
    let slots: Vec<i32> = (0..count).map(slot).collect();
    Sequences {
        starts: cx.ints(&[count + 1], &starts),
        lens: cx.ints(&[count], &known),
        slots: cx.ints(&[count], &slots),
        most: lens.iter().copied().max().unwrap_or(0),
    }
}

fn conv(cx: &mut CaseCx, s: Shape, lens: &[usize]) -> ShortConv {
    let rows = lens.iter().sum();
    let parts = if s.form == ConvForm::Gated { 3 } else { 1 };
    ShortConv {
        x: cx.random_gapped(&[rows, parts * s.channels], s.x, Fill::Spiky, s.gap),
        weight: cx.random_gapped(&[s.kernel, s.channels], DType::F32, Fill::Normal(0.6), s.gap),
        bias: s.bias.then(|| cx.random(&[s.channels], DType::F32, Fill::Normal(1.0))),
        form: s.form,
        state: cx.random(&[lens.len() + 2, s.kernel - 1, s.channels], DType::F32, Fill::Spiky),
        seqs: sequences(cx, lens),
        out: cx.output_gapped(&[rows, s.channels], s.out, s.gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<ShortConv>> {
    use ConvForm::{Gated, Plain, Silu};
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let base = Shape { channels: 64, kernel: 3, form: Gated, bias: false, x: F32, out: F32, gap: 0 };
    // Ragged prompts, some shorter than the taps, around the rows of a workgroup.
    let ragged: &[&[usize]] = &[
        &[],
        &[1],
        &[2, 1, 1, 3, 1, 2],
        &[31, 32, 33, 1, 65],
        &[5; 9],
        &[1; 17],
        &[97],
        &[2, 130, 1, 64, 7],
    ];
    for form in [Plain, Silu, Gated] {
        for lens in ragged {
            for (channels, kernel) in [(1, 2), (7, 4), (64, 3), (131, 8)] {
                let shape = Shape { channels, kernel, form, ..base };
                let name = format!("{form:?} {lens:?} x {channels}, {kernel} taps");
                all.push(Case { name, op: conv(cx, shape, lens) });
            }
        }
    }
    for x in [F32, BF16, F16] {
        for out in [F32, BF16, F16] {
            for (form, bias) in [(Silu, true), (Gated, true), (Plain, false)] {
                let shape = Shape { channels: 83, kernel: 4, form, bias, x, out, gap: 5 };
                let name = format!("{form:?} {x} to {out}, bias {bias}");
                all.push(Case { name, op: conv(cx, shape, &[9, 1, 40, 2, 1]) });
            }
        }
    }
    // Rows of real models: prompts and steps.
    for (channels, kernel, form) in [(2048, 3, Gated), (6144, 4, Silu)] {
        for lens in [&[70, 3][..], &[1, 1, 1][..]] {
            let shape = Shape { channels, kernel, form, x: BF16, out: BF16, ..base };
            all.push(Case { name: format!("{channels} {lens:?}"), op: conv(cx, shape, lens) });
        }
    }
    // Columns of a wider projection.
    let wide = cx.random(&[11, 200], F32, Fill::Normal(1.0));
    if let Ok(x) = wide.narrow(1, 31, 64) {
        let shape = Shape { form: Silu, kernel: 4, ..base };
        all.push(Case { name: "columns".into(), op: ShortConv { x, ..conv(cx, shape, &[4, 6, 1]) } });
    }
    all
}
