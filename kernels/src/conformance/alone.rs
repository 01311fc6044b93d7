//! Batch-invariant choices: a row's result has the same bits alone and among others.

use std::ops::Range;

use super::cases::{CaseCx, Fill};
use crate::buffer::{Storage, View};
use crate::op::{Device, Exec, Op};
use crate::ops::{Attention, AttentionKv, Math, Matmul, Seen, Stream, kept, kept_elements};
use crate::spec::{DType, KernelError};

/// Rows of the largest batch.
const ROWS: usize = 70;

/// Parts of it.
const PARTS: [Range<usize>; 6] = [0..1, 17..18, 69..70, 16..19, 10..26, 5..40];

/// How many kinds of products and of attention [`alone_as_among_others`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// All formats, types and maths.
    All,
    /// Some, and short: for devices on which each kernel takes seconds.
    Few,
}

/// Runs products and attention on parts of a batch and on all of it, on a device with batch-invariant choices: how many kinds ran.
///
/// # Errors
///
/// Where an op fails, and where a row's bits differ.
pub fn alone_as_among_others(device: &dyn Device, kinds: Kinds, seed: u64) -> Result<usize, String> {
    let mut stream = device.stream().map_err(|error| error.to_string())?;
    let mut cx = CaseCx::new(seed);
    Ok(products(&mut *stream, &mut cx, kinds)? + attention(&mut *stream, &mut cx, kinds)?)
}

/// The op on copies of its memory on the stream's device.
fn moved<O: Op>(stream: &mut dyn Stream, op: &O) -> Result<O, KernelError> {
    let (mut op, mut copies) = (op.clone(), Vec::<(Storage, Storage)>::new());
    let mut failed = None;
    op.visit(&mut |_, view| {
        let mut copy = |from: &Storage| {
            if let Some((_, to)) = copies.iter().find(|(of, _)| of.same(from)) {
                return Ok(to.clone());
            }
            let bytes = from.snapshot();
            let to = stream.alloc(bytes.len())?;
            stream.write(&View::dense(to.clone(), &[bytes.len()], DType::U8)?, &bytes)?;
            copies.push((from.clone(), to.clone()));
            Ok(to)
        };
        match copy(view.storage()).and_then(|to| Ok(view.with_storage(to)?)) {
            Ok(there) => *view = there,
            Err(error) => failed = failed.take().or(Some(error)),
        }
    });
    failed.map_or(Ok(op), Err)
}

fn bytes(stream: &mut dyn Stream, view: &View) -> Result<Vec<u8>, KernelError> {
    let mut bytes = vec![0; view.bytes() as usize];
    stream.read(view, &mut bytes)?;
    Ok(bytes)
}

/// Formats, types and maths; those that the device has no kernel for are left out.
fn products(stream: &mut dyn Stream, cx: &mut CaseCx, kinds: Kinds) -> Result<usize, String> {
    let mut ran = 0;
    let formats = ["bf16", "int4g32", "f32", "f16", "int8g32", "int4g64z", "fp8g128"];
    let types = [DType::F32, DType::BF16, DType::F16];
    let maths = [Math::Exact, Math::Int8, Math::Bf16];
    let (shapes, formats, types, maths) = match kinds {
        Kinds::All => (&[(96, 576, false), (48, 2048, true)][..], &formats[..], &types[..], &maths[..]),
        Kinds::Few => (&[(32, 512, false)][..], &formats[..2], &types[..2], &maths[..1]),
    };
    for &(n, k, gated) in shapes {
        for &w in formats {
            let format = w.parse().map_err(|error| format!("{w}: {error:?}"))?;
            for &x in types {
                for &math in maths {
                    let out = cx.output(&[ROWS, if gated { n / 2 } else { n }], x);
                    let mut op = Matmul::new(
                        cx.random(&[ROWS, k], x, Fill::Normal(1.0)),
                        cx.weights(format, n, k, !gated),
                        out,
                    );
                    (op.math, op.gated) = (math, gated);
                    if op.spec().is_err() || !Exec::<Matmul>::accepts(&*stream, &op) {
                        continue;
                    }
                    let about = format!("{n} x {k} weights of {w}, {ROWS} rows of {x}, {math:?}");
                    product(stream, &op).map_err(|error| format!("{about}: {error}"))?;
                    ran += 1;
                }
            }
        }
    }
    Ok(ran)
}

fn product(stream: &mut dyn Stream, op: &Matmul) -> Result<(), String> {
    let mut run = |rows: Range<usize>| -> Result<Vec<u8>, KernelError> {
        let part = |view: &View| view.narrow(0, rows.start, rows.len());
        let part = Matmul { x: part(&op.x)?, out: part(&op.out)?, ..op.clone() };
        let part = moved(stream, &part)?;
        Exec::<Matmul>::exec(stream, &part)?;
        bytes(stream, &part.out)
    };
    let whole = run(0..ROWS).map_err(|error| error.to_string())?;
    let row = whole.len() / ROWS;
    for rows in PARTS {
        let part = run(rows.clone()).map_err(|error| error.to_string())?;
        if part != whole[rows.start * row..rows.end * row] {
            return Err(format!("rows {rows:?} differ from those of the whole batch"));
        }
    }
    Ok(())
}

/// Sequences: new queries, and keys with those of the queries.
const SEQS: [(usize, usize); 5] = [(1, 130), (7, 40), (33, 33), (1, 5), (20, 300)];
const HEADS: (usize, usize, usize) = (4, 2, 64);
const PAGE: usize = 16;

/// Numbers of all queries, keys and values.
struct Numbers {
    q: Vec<Vec<f64>>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// Pages of each sequence.
    tables: Vec<Vec<i32>>,
    pages: usize,
}

fn attention(stream: &mut dyn Stream, cx: &mut CaseCx, kinds: Kinds) -> Result<usize, String> {
    let (heads_q, heads_kv, dim) = HEADS;
    let mut many = |count: usize| (0..count).map(|_| cx.value(Fill::Normal(1.0))).collect::<Vec<f64>>();
    let q = SEQS.iter().map(|(q, _)| many(q * heads_q * dim)).collect::<Vec<_>>();
    let mut pages = 0;
    let tables = SEQS.iter().map(|(_, keys)| {
        let from = pages;
        pages += keys.div_ceil(PAGE);
        (from as i32..pages as i32).rev().collect()
    });
    let tables = tables.collect();
    let numbers = Numbers {
        q,
        k: many(pages * PAGE * heads_kv * dim),
        v: many(pages * PAGE * heads_kv * dim),
        tables,
        pages,
    };
    let mut ran = 0;
    let types = [DType::BF16, DType::F32, DType::F16].map(|x| (x, x));
    let types = [&types[..], &[(DType::F32, DType::I8), (DType::BF16, DType::I8)]].concat();
    for &(x, kv) in &types[..if kinds == Kinds::All { types.len() } else { 1 }] {
        for window in [0, 50] {
            let about = format!("attention of {x} on {kv}, window {window}");
            ran += usize::from(
                attend(stream, cx, &numbers, x, kv, window).map_err(|error| format!("{about}: {error}"))?,
            );
        }
    }
    Ok(ran)
}

/// Queries of sequences in one call: the sequence, and which of its queries.
type Chunks<'a> = &'a [(usize, Range<usize>)];

fn attend(
    stream: &mut dyn Stream,
    cx: &mut CaseCx,
    numbers: &Numbers,
    x: DType,
    kv: DType,
    window: usize,
) -> Result<bool, String> {
    let mut call = |chunks: Chunks<'_>| -> Result<Option<Vec<u8>>, KernelError> {
        let op = moved(stream, &of_chunks(cx, numbers, chunks, x, kv, window))?;
        if !Exec::<Attention>::accepts(stream, &op) {
            return Ok(None);
        }
        Exec::<Attention>::exec(stream, &op)?;
        bytes(stream, &op.out).map(Some)
    };
    let all: Vec<(usize, Range<usize>)> = SEQS.iter().enumerate().map(|(seq, (q, _))| (seq, 0..*q)).collect();
    let Some(whole) = call(&all).map_err(|error| error.to_string())? else { return Ok(false) };
    let row = whole.len() / SEQS.iter().map(|(q, _)| q).sum::<usize>();
    let mut first = 0;
    for (seq, (queries, _)) in SEQS.into_iter().enumerate() {
        // Alone, and cut as a long prompt is.
        for cut in [0, 1, 6, queries / 2, queries - 1] {
            for part in [0..cut.min(queries), cut.min(queries)..queries] {
                if part.is_empty() {
                    continue;
                }
                let expected = &whole[(first + part.start) * row..(first + part.end) * row];
                let found = call(&[(seq, part.clone())]).map_err(|error| error.to_string())?;
                if found.as_deref() != Some(expected) {
                    return Err(format!(
                        "queries {part:?} of sequence {seq} differ from those of the whole batch"
                    ));
                }
            }
        }
        first += queries;
    }
    Ok(true)
}

fn of_chunks(
    cx: &mut CaseCx,
    numbers: &Numbers,
    chunks: Chunks<'_>,
    x: DType,
    kv: DType,
    window: usize,
) -> Attention {
    let (heads_q, heads_kv, dim) = HEADS;
    let (mut q, mut starts, mut lens, mut table) = (vec![], vec![0], vec![], vec![]);
    let keys_of = |&(seq, ref queries): &(usize, Range<usize>)| SEQS[seq].1 - SEQS[seq].0 + queries.end;
    let width = chunks.iter().map(|chunk| keys_of(chunk).div_ceil(PAGE)).max().unwrap_or(0);
    for chunk in chunks {
        let (seq, queries) = chunk;
        q.extend_from_slice(&numbers.q[*seq][queries.start * heads_q * dim..queries.end * heads_q * dim]);
        starts.push(starts[starts.len() - 1] + queries.len() as i32);
        lens.push(keys_of(chunk) as i32);
        let pages = numbers.tables[*seq].iter().copied().chain(std::iter::repeat(0));
        table.extend(pages.take(width));
    }
    let tokens = starts[starts.len() - 1] as usize;
    let pages = [numbers.pages, PAGE, heads_kv, kept_elements(dim, kv)];
    let pool = |cx: &mut CaseCx, values: &[f64]| match kv {
        DType::I8 => cx.values(&pages, kv, &kept::elements(values, dim)),
        _ => cx.values(&pages, kv, values),
    };
    Attention {
        q: cx.values(&[tokens, heads_q, dim], x, &q),
        kv: AttentionKv::Paged {
            k: pool(cx, &numbers.k),
            v: pool(cx, &numbers.v),
            block_table: cx.ints(&[chunks.len(), width], &table),
            kv_lens: cx.ints(&[chunks.len()], &lens),
        },
        q_starts: cx.ints(&[starts.len()], &starts),
        seen: Seen::Causal { window },
        scale: 0.125,
        softcap: 0.0,
        out: cx.output(&[tokens, heads_q, dim], x),
        max_q: chunks.iter().map(|(_, queries)| queries.len()).max().unwrap_or(0),
        max_kv: lens.iter().map(|&len| len as usize).max().unwrap_or(0),
        pairs: 1,
    }
}
