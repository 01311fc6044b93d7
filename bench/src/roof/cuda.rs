//! Roofs of an NVIDIA GPU. The loops are CUDA beside the other kernels, in `kernels/src/cuda/roof/`.
//!
//! As on a CPU, a figure is the best of many short windows.

use std::time::{Duration, Instant};

use ocelli_kernels::cuda::{CudaArithmetic, CudaStream};
use ocelli_kernels::{DType, KernelError, Queue, View};

use super::Roofs;

/// Memory that is read, far more than caches hold.
const READ: usize = 2 << 30;
/// Windows go on for this long.
const TIME: Duration = Duration::from_millis(300);
/// What a window of arithmetic takes at least.
const WINDOW_US: f64 = 2000.0;

/// Measures all roofs of the device. Takes a second or two.
pub fn measure(stream: &mut CudaStream) -> Result<Roofs, KernelError> {
    let out = View::dense(stream.alloc(4 * stream.spin_len())?, &[stream.spin_len()], DType::F32)?;
    let fma = rate(stream, CudaArithmetic::Fma, &out)?;
    let matrix = rate(stream, CudaArithmetic::Matrix, &out)?;
    let read_gbps = read(stream, &out)?;
    Ok(Roofs { fma_f32_gflops: fma, matrix_f16_gflops: Some(matrix), read_gbps, ..Roofs::default() })
}

/// Microseconds from a launch of almost no work until the host knows that it is done: the median of some.
pub fn submit_us(stream: &mut CudaStream) -> Result<f64, KernelError> {
    let out = View::dense(stream.alloc(4 * stream.spin_len())?, &[stream.spin_len()], DType::F32)?;
    let mut all = Vec::new();
    for _ in 0..33 {
        let start = Instant::now();
        stream.spin(CudaArithmetic::Fma, 1, &out)?;
        stream.sync()?;
        all.push(start.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

/// Time of some work on the device's clock, in microseconds.
fn time(
    stream: &mut CudaStream,
    work: &mut dyn FnMut(&mut CudaStream) -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    let begin = stream.driver().clock()?.unwrap_or(0.0);
    work(stream)?;
    Ok((stream.driver().clock()?.unwrap_or(0.0) - begin).max(1e-3))
}

/// The best of some windows, in microseconds.
fn best(
    stream: &mut CudaStream,
    mut work: impl FnMut(&mut CudaStream) -> Result<(), KernelError>,
) -> Result<f64, KernelError> {
    let (begin, mut best, mut windows) = (Instant::now(), f64::INFINITY, 0);
    while windows < 4 || (windows < 200 && begin.elapsed() < TIME) {
        best = best.min(time(stream, &mut work)?);
        windows += 1;
    }
    Ok(best)
}

/// Arithmetic in 1e9 operations per second.
fn rate(stream: &mut CudaStream, kind: CudaArithmetic, out: &View) -> Result<f64, KernelError> {
    let mut turns = 64;
    while time(stream, &mut |stream| stream.spin(kind, turns, out).map(|_| ()))? < WINDOW_US
        && turns < 1 << 24
    {
        turns *= 2;
    }
    let mut operations = 0.0;
    let us = best(stream, |stream| {
        operations = stream.spin(kind, turns, out)?;
        Ok(())
    })?;
    Ok(operations / us / 1e3)
}

/// Reads in 1e9 bytes per second.
fn read(stream: &mut CudaStream, out: &View) -> Result<f64, KernelError> {
    let data = View::dense(stream.alloc(READ)?, &[READ], DType::U8)?;
    let us = best(stream, |stream| stream.read_all(&data, out))?;
    Ok(READ as f64 / us / 1e3)
}
