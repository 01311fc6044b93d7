//! Roofs of a GPU. The loops are WGSL beside the other kernels, in `kernels/src/wgpu/roof/`.
//!
//! As on a CPU, a figure is the best of many short windows.

use std::time::{Duration, Instant};

use half::f16;
use ocelli_kernels::wgpu::{Arithmetic, WgpuStream};
use ocelli_kernels::{DType, KernelError, Queue, View};

use super::Roofs;

/// Memory that is read, far more than caches hold: as much as the device gives of this.
const READ: usize = 1 << 30;
/// The memory comes in parts of at most this: what a binding holds on the least device, and no more than a window needs.
const PART: usize = 128 << 20;
/// Windows go on for this long.
const TIME: Duration = Duration::from_millis(400);

/// Measures all roofs of the device. Takes a few seconds.
pub fn measure(stream: &mut WgpuStream) -> Result<Roofs, KernelError> {
    let mut arithmetic = |kind: Arithmetic| {
        if kind.is_of(stream.caps()) { rate(stream, kind).map(Some) } else { Ok(None) }
    };
    let fma_f32_gflops = arithmetic(Arithmetic::FmaF32)?.unwrap_or(0.0);
    let f16_gflops = arithmetic(Arithmetic::FmaF16)?;
    let int8_gops = arithmetic(Arithmetic::Int8)?.unwrap_or(0.0);
    let matrix_f16_gflops = arithmetic(Arithmetic::MatrixF16)?;
    let read_gbps = read(stream)?;
    Ok(Roofs { fma_f32_gflops, f16_gflops, int8_gops, matrix_f16_gflops, read_gbps, ..Roofs::default() })
}

/// Microseconds from a submission of almost no work until the host knows that it is done: the median of some.
pub fn submit_us(stream: &mut WgpuStream) -> Result<f64, KernelError> {
    let (data, out) = (words(stream, 1)?, words(stream, Arithmetic::FmaF32.words(stream.caps()))?);
    let mut all = Vec::new();
    for _ in 0..33 {
        let start = Instant::now();
        stream.spin(Arithmetic::FmaF32, 1, 1, &data, &out)?;
        stream.sync()?;
        all.push(start.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

fn words(stream: &mut WgpuStream, count: usize) -> Result<View, KernelError> {
    Ok(View::dense(stream.alloc(4 * count)?, &[count], DType::I32)?)
}

/// The best of some windows, in seconds.
fn best(
    stream: &mut WgpuStream,
    mut window: impl FnMut(&mut WgpuStream) -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    let (begin, mut best, mut windows) = (Instant::now(), f64::INFINITY, 0);
    while windows < 4 || (windows < 200 && begin.elapsed() < TIME) {
        stream.start_clock()?;
        window(stream)?;
        best = best.min(stream.stop_clock()?.as_secs_f64().max(1e-9));
        windows += 1;
    }
    Ok(best)
}

/// Arithmetic in 1e9 operations per second.
fn rate(stream: &mut WgpuStream, kind: Arithmetic) -> Result<f64, KernelError> {
    let caps = stream.caps().clone();
    // Enough workgroups for the largest device to be full several times over.
    let groups = if caps.wgpu.software { 64 } else { 8192 };
    let side = caps.wgpu.matrix as usize;
    let data = View::dense(stream.alloc(4 * side * side)?, &[2 * side * side], DType::F16)?;
    let values: Vec<u8> =
        (0..data.len()).flat_map(|i| f16::from_f32((i % 7) as f32 * 0.03 - 0.08).to_le_bytes()).collect();
    stream.write(&data, &values)?;
    let out = words(stream, groups * kind.words(&caps))?;
    // Without a clock of the device a window has to be long against a submission.
    let least = if stream.has_clock() { 2e-3 } else { 20e-3 };
    let mut turns = 16;
    loop {
        stream.start_clock()?;
        stream.spin(kind, groups, turns, &data, &out)?;
        let seconds = stream.stop_clock()?.as_secs_f64();
        if seconds >= least || turns >= 1 << 20 {
            break;
        }
        turns *= 2;
    }
    let seconds = best(stream, |stream| stream.spin(kind, groups, turns, &data, &out))?;
    Ok(kind.operations(&caps) * groups as f64 * f64::from(turns) / seconds / 1e9)
}

/// Reads in 1e9 bytes per second.
fn read(stream: &mut WgpuStream) -> Result<f64, KernelError> {
    let part = PART.min(stream.caps().wgpu.max_binding as usize) / 4096 * 4096;
    let mut state = 1u64;
    let noise: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 32) as u32).to_le_bytes()
        })
        .collect();
    let mut parts = Vec::new();
    while parts.len() * part < READ {
        let Ok(storage) = stream.alloc(part) else { break };
        let view = View::dense(storage, &[part], DType::U8)?;
        for start in (0..part).step_by(noise.len()) {
            let piece = view.narrow(0, start, noise.len().min(part - start))?;
            stream.write(&piece, &noise[..piece.len()])?;
        }
        stream.sync()?;
        parts.push(view);
    }
    if parts.is_empty() {
        return Err(KernelError::OutOfMemory { bytes: part, device: stream.caps().device.clone() });
    }
    let out = words(stream, WgpuStream::read_sums(part))?;
    // A window is all of the memory, so that it is long against its own beginning and end; on a software device a part, so
    // that some windows are undisturbed.
    let count = if stream.caps().wgpu.software { 1 } else { parts.len() };
    let mut next = 0;
    let seconds = best(stream, |stream| {
        for _ in 0..count {
            next = (next + 1) % parts.len();
            stream.read_all(&parts[next], &out)?;
        }
        Ok(())
    })?;
    Ok((count * part) as f64 / seconds / 1e9)
}
