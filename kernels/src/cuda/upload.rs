//! Weights on their way to the device, straight from the map.
//!
//! The stored tensors of a stacked matrix become one matrix, and every row begins at a multiple of 16 bytes.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::buffer::CudaBuf;
use super::stream::CudaStream;
use crate::buffer::{Storage, View, WeightPart, Weights};
use crate::placing::{self, HostRows, Source, rows_held, runs, sources};
use crate::spec::{DType, KernelError, Layout};

/// Bytes that are copied at once.
const CHUNK: usize = 8 << 20;
/// What the first byte of each row is a multiple of: the widest load.
const ROW_ALIGN: usize = 16;

/// Rows of planes one after another, `pitch` bytes apart, in one allocation. The same rows get the same memory as long as that
/// lives.
fn upload(
    stream: &mut CudaStream,
    sources: &[Source<'_>],
    pitch: usize,
) -> Result<Arc<CudaBuf>, KernelError> {
    let host = HostRows::of(sources)?;
    if let Some(buffer) = stream.placed.find(&host) {
        return Ok(buffer);
    }
    let rows: usize = sources.iter().map(|source| source.rows.len()).sum();
    // The copy writes every byte.
    let buffer = Arc::new(CudaBuf::unset(&stream.driver, rows * pitch)?);
    if stream.driver.stores() {
        copy(stream, sources, pitch, &buffer)?;
    }
    stream.placed.keep(host, &buffer);
    Ok(buffer)
}

fn copy(
    stream: &CudaStream,
    sources: &[Source<'_>],
    pitch: usize,
    buffer: &CudaBuf,
) -> Result<(), KernelError> {
    let mut chunk: Vec<u8> = Vec::new();
    let mut at = buffer.address;
    for Source { view, rows } in sources {
        let row_bytes = view.size(1) * view.dtype().size();
        if row_bytes == pitch && view.layout().is_dense() {
            // Dense rows go from the map to the device as they lie.
            if !chunk.is_empty() {
                stream.driver.write(at, &chunk)?;
                at += chunk.len() as u64;
                chunk.clear();
            }
            view.with_host_bytes(rows.clone(), |bytes| {
                for part in bytes.chunks(CHUNK) {
                    stream.driver.write(at, part)?;
                    at += part.len() as u64;
                }
                Ok(())
            })?;
            continue;
        }
        view.with_host_rows(rows.clone(), |row| {
            chunk.extend_from_slice(row);
            chunk.resize(chunk.len() + pitch - row.len(), 0);
            if chunk.len() >= CHUNK {
                stream.driver.write(at, &chunk)?;
                at += chunk.len() as u64;
                chunk.clear();
            }
            Ok(())
        })?;
    }
    if chunk.is_empty() { Ok(()) } else { stream.driver.write(at, &chunk) }
}

/// A host view on the device: dense.
pub(super) fn place_view(stream: &mut CudaStream, view: &View) -> Result<View, KernelError> {
    if !matches!(view.storage(), Storage::Host(_)) {
        return Ok(view.clone());
    }
    let flat = placing::flat(view)?;
    let pitch = flat.size(1) * view.dtype().size();
    let buffer = upload(stream, &[Source { view: &flat, rows: 0..flat.size(0) }], pitch)?;
    Ok(View::dense(Storage::Cuda(buffer), view.shape(), view.dtype())?)
}

/// A matrix on the device: one part, where its zero points allow.
pub(super) fn place(stream: &mut CudaStream, weights: &Weights) -> Result<Weights, KernelError> {
    let placed: Result<Vec<Weights>, KernelError> =
        runs(weights).into_iter().map(|parts| place_parts(stream, weights, parts)).collect();
    Ok(Weights::stack(placed?)?)
}

fn place_parts(
    stream: &mut CudaStream,
    weights: &Weights,
    parts: &[WeightPart],
) -> Result<Weights, KernelError> {
    let (format, k) = (weights.format(), weights.k());
    let n: usize = parts.iter().map(|part| part.rows).sum();
    let range: Range<usize> = 0..n;
    let mut planes: SmallVec<[View; 3]> = SmallVec::new();
    for (index, shape) in format.planes(n, k).iter().enumerate() {
        // What is on the device already stays as it lies.
        if let [part] = parts
            && !matches!(part.planes[index].storage(), Storage::Host(_))
        {
            planes.push(part.planes[index].clone());
            continue;
        }
        let pitch = (shape.cols * shape.dtype.size()).next_multiple_of(ROW_ALIGN);
        let sources = sources(parts, &range, rows_held(shape, n), |part| &part.planes[index]);
        let buffer = upload(stream, &sources, pitch)?;
        let layout = Layout::strided(&[shape.rows, shape.cols], &[pitch / shape.dtype.size(), 1])?;
        planes.push(View::new(Storage::Cuda(buffer), 0, layout, shape.dtype)?);
    }
    let bias = match parts {
        [part] => part.bias.as_ref().map(|bias| place_view(stream, bias)).transpose()?,
        _ => match placing::biases(parts, &range)? {
            None => None,
            Some(values) => {
                let buffer = Arc::new(CudaBuf::unset(&stream.driver, values.len() * 4)?);
                stream.driver.write(buffer.address, bytemuck::cast_slice(&values))?;
                Some(View::dense(Storage::Cuda(buffer), &[values.len()], DType::F32)?)
            }
        },
    };
    Ok(Weights::new(format, n, k, planes, bias)?)
}
