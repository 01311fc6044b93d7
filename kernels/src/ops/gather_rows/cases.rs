//! Conformance cases.

use super::GatherRows;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::{Code, DType, Format, Grouped, Zero};
use crate::{View, Weights};

/// Ids at both ends, twice, and at random.
fn ids(cx: &mut CaseCx, tokens: usize, rows: usize) -> View {
    let mut ids = vec![0, rows - 1, rows / 2, 0, rows - 1];
    ids.resize_with(tokens.max(5), || cx.below(rows));
    let ids: Vec<i32> = ids[..tokens].iter().map(|&id| id as i32).collect();
    cx.ints(&[tokens], &ids)
}

fn case(cx: &mut CaseCx, table: Weights, tokens: usize, out: DType, gap: usize) -> Case<GatherRows> {
    let (rows, d) = (table.n(), table.k());
    let name = format!("{tokens} of {rows}x{d} {} to {out}, gap {gap}", table.format());
    let ids = ids(cx, tokens, rows);
    let op = GatherRows { table, ids, scale: 1.0, out: cx.output_gapped(&[tokens, d], out, gap) };
    Case { name, op }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<GatherRows>> {
    use DType::{BF16, E4M3, E8M0, F16, F32};
    let mut all = Vec::new();
    for format in [F32, BF16, F16].map(Format::Dense) {
        for out in [F32, BF16, F16] {
            for (tokens, rows, d, gap) in [(0, 4, 8, 0), (1, 1, 1, 0), (7, 5, 33, 3), (11, 13, 64, 0)] {
                let table = cx.weights(format, rows, d, false);
                all.push(case(cx, table, tokens, out, gap));
            }
        }
    }
    let codes = |code, group, zero, scale| Format::Grouped(Grouped { code, group, zero, scale });
    for &code in Code::ALL {
        for zero in Zero::ALL.into_iter().filter(|&zero| code.is_int() || zero == Zero::None) {
            for (group, scale, d) in [
                (32, BF16, 64),
                (32, F16, 97),
                (64, F32, 129),
                (128, BF16, 576),
                (128, F16, 200),
                (0, F32, 83),
                (0, BF16, 1),
                (5, F32, 33),
                (7, BF16, 50),
            ] {
                let table = cx.weights(codes(code, group, zero, scale), 19, d, false);
                all.push(case(cx, table.clone(), 9, F32, 0));
                all.push(case(cx, table, 6, BF16, 11));
            }
        }
        for (group, scale, d) in [(16, E4M3, 70), (32, E8M0, 97), (0, E4M3, 45)] {
            let table = cx.weights(codes(code, group, Zero::None, scale), 19, d, false);
            all.push(case(cx, table, 9, F32, 0));
        }
    }
    for format in [
        Format::Dense(BF16),
        codes(Code::Int8, 128, Zero::None, BF16),
        codes(Code::Int4, 32, Zero::Codes, F16),
        codes(Code::Fp8, 32, Zero::None, F32),
    ] {
        let tops = [3, 1, 6].map(|rows| cx.weights(format, rows, 70, false));
        if let Ok(table) = Weights::stack(tops) {
            let case = case(cx, table, 12, F32, 1);
            all.push(Case { name: format!("stacked: {}", case.name), ..case });
        }
        let table = cx.weights(format, 10, 45, false);
        let mut scaled = case(cx, table, 8, F32, 0);
        scaled.op.scale = 45f32.sqrt();
        all.push(Case { name: format!("scaled: {}", scaled.name), ..scaled });
    }
    // Rows of a batch that were asked for: a window of a wider activation.
    let wide = cx.random_gapped(&[10, 40], F32, Fill::Spiky, 9);
    if let Ok(table) = wide.narrow(1, 8, 24).and_then(|view| Weights::dense(view, None)) {
        all.push(case(cx, table, 5, F16, 0));
    }
    // SmolVLM-256M: the embedding of a prompt.
    for format in [
        Format::Dense(BF16),
        codes(Code::Int8, 128, Zero::None, BF16),
        codes(Code::Int8, 0, Zero::None, BF16),
    ] {
        let table = cx.weights(format, 49280, 576, false);
        all.push(case(cx, table, 37, F32, 0));
    }
    all
}
