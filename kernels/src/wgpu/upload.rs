//! Weights on their way to the device: straight from the map, through staging memory of bounded size.
//!
//! The stored tensors of a stacked matrix become one matrix; one that is larger than a binding may be is split by rows.

use std::sync::Arc;

use smallvec::SmallVec;

use super::buffer::WgpuBuf;
use super::stream::WgpuStream;
use crate::buffer::{Storage, View, WeightPart, Weights};
use crate::op::Queue;
use crate::placing::{self, HostRows, Source, rows_held, runs, sources};
use crate::spec::{DType, KernelError};

/// Bytes that are copied at once.
const CHUNK: usize = 8 << 20;
/// Bytes on their way before the host waits.
const BUDGET: usize = 64 << 20;
/// Rows of a part of a split matrix are a multiple of this: whole tiles, and whole words of packed zero points.
const SPLIT_ROWS: usize = 64;

/// Host memory that is on the device already.
#[derive(Default)]
pub(super) struct Placed {
    known: placing::Placed<WgpuBuf>,
    /// Bytes handed over since the host last waited.
    pending: usize,
}

/// Rows of planes one after another in one buffer. The same rows get the same buffer as long as that lives.
fn upload(
    stream: &mut WgpuStream,
    sources: &[Source<'_>],
    bytes: usize,
) -> Result<Arc<WgpuBuf>, KernelError> {
    let host = HostRows::of(sources)?;
    if let Some(buffer) = stream.placed.known.find(&host) {
        return Ok(buffer);
    }
    let buffer = copy(stream, sources, bytes)?;
    stream.placed.known.keep(host, &buffer);
    Ok(buffer)
}

fn copy(stream: &mut WgpuStream, sources: &[Source<'_>], bytes: usize) -> Result<Arc<WgpuBuf>, KernelError> {
    let buffer = Arc::new(WgpuBuf::new(&stream.gpu, bytes)?);
    let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK.min(bytes) + 4);
    let mut at = 0;
    let mut flush = |stream: &mut WgpuStream, chunk: &mut Vec<u8>, all: bool| -> Result<(), KernelError> {
        let rest = if all { Vec::new() } else { chunk.split_off(chunk.len() / 4 * 4) };
        chunk.resize(chunk.len().next_multiple_of(4), 0);
        stream.write_words(&buffer, at, chunk)?;
        at += chunk.len();
        stream.placed.pending += chunk.len();
        *chunk = rest;
        if stream.placed.pending >= BUDGET {
            stream.placed.pending = 0;
            // An empty submission starts the copies.
            let index = stream.gpu.queue.submit([]);
            stream.gpu.wait(index, || "uploading weights".to_owned())?;
        }
        Ok(())
    };
    for Source { view, rows } in sources {
        view.with_host_rows(rows.clone(), |mut row| {
            while !row.is_empty() {
                let take = row.len().min(CHUNK - chunk.len());
                chunk.extend_from_slice(&row[..take]);
                row = &row[take..];
                if chunk.len() >= CHUNK {
                    flush(stream, &mut chunk, false)?;
                }
            }
            Ok(())
        })?;
    }
    flush(stream, &mut chunk, true)?;
    Ok(buffer)
}

/// A host view on the device.
pub(super) fn place_view(stream: &mut WgpuStream, view: &View) -> Result<View, KernelError> {
    if !matches!(view.storage(), Storage::Host(_)) {
        return Ok(view.clone());
    }
    let flat = placing::flat(view)?;
    let rows = 0..flat.size(0);
    let buffer = upload(stream, &[Source { view: &flat, rows }], view.bytes() as usize)?;
    Ok(View::dense(Storage::Wgpu(buffer), view.shape(), view.dtype())?)
}

/// A matrix on the device: one part, or as few as its size allows.
pub(super) fn place(stream: &mut WgpuStream, weights: &Weights) -> Result<Weights, KernelError> {
    let format = weights.format();
    stream.gpu.expect_room(weights.bytes())?;
    let most = stream.caps().wgpu.max_binding as usize;
    let mut placed: Vec<Weights> = Vec::new();
    for group in runs(weights) {
        let rows: usize = group.iter().map(|part| part.rows).sum();
        let widest =
            format.planes(SPLIT_ROWS, weights.k()).iter().map(|p| p.rows * p.cols * p.dtype.size()).max();
        let per_part = match widest {
            Some(bytes) if format.bytes(rows, weights.k()) as usize > most && bytes > 0 => {
                (most / bytes * SPLIT_ROWS).max(SPLIT_ROWS)
            }
            _ => rows,
        };
        let mut start = 0;
        while start < rows || rows == 0 {
            let end = rows.min(start + per_part.max(1));
            placed.push(place_rows(stream, weights, group, start..end)?);
            start = end;
            if rows == 0 {
                break;
            }
        }
    }
    Ok(Weights::stack(placed)?)
}

/// Rows `range` of a run of parts as one matrix on the device.
fn place_rows(
    stream: &mut WgpuStream,
    weights: &Weights,
    parts: &[WeightPart],
    range: std::ops::Range<usize>,
) -> Result<Weights, KernelError> {
    let (format, k) = (weights.format(), weights.k());
    let n = range.len();
    let single = parts.len() == 1 && n == parts[0].rows;
    let mut planes: SmallVec<[View; 3]> = SmallVec::new();
    for (index, shape) in format.planes(n, k).iter().enumerate() {
        if single {
            planes.push(place_view(stream, &parts[0].planes[index])?);
            continue;
        }
        let sources = sources(parts, &range, rows_held(shape, n), |part| &part.planes[index]);
        let buffer = upload(stream, &sources, shape.rows * shape.cols * shape.dtype.size())?;
        planes.push(View::dense(Storage::Wgpu(buffer), &[shape.rows, shape.cols], shape.dtype)?);
    }
    let bias = if single {
        parts[0].bias.as_ref().map(|bias| place_view(stream, bias)).transpose()?
    } else {
        place_biases(stream, parts, &range)?
    };
    Ok(Weights::new(format, n, k, planes, bias)?)
}

/// One bias for the rows, `None` where no part has one.
fn place_biases(
    stream: &mut WgpuStream,
    parts: &[WeightPart],
    range: &std::ops::Range<usize>,
) -> Result<Option<View>, KernelError> {
    let Some(values) = placing::biases(parts, range)? else { return Ok(None) };
    let buffer = Arc::new(WgpuBuf::new(&stream.gpu, values.len() * 4)?);
    stream.write_words(&buffer, 0, bytemuck::cast_slice(&values))?;
    Ok(Some(View::dense(Storage::Wgpu(buffer), &[values.len()], DType::F32)?))
}
