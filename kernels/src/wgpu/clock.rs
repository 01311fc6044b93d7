//! How long the device works, by its own clock where it has one.

use std::time::{Duration, Instant};

use super::gpu::Gpu;
use super::stream::WgpuStream;
use crate::op::Queue;
use crate::spec::KernelError;

/// Two times: the beginning of the first pass and the end of the last one so far.
const TIMES: u32 = 2;

/// Time that is being measured.
pub(super) struct Clock {
    start: Instant,
    queries: Option<wgpu::QuerySet>,
    begun: bool,
}

impl Clock {
    fn start(gpu: &Gpu) -> Self {
        let queries = gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY).then(|| {
            gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: TIMES,
            })
        });
        Self { start: Instant::now(), queries, begun: false }
    }

    /// What a pass that begins now writes down.
    pub fn pass(&mut self) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let query_set = self.queries.as_ref()?;
        let first = !std::mem::replace(&mut self.begun, true);
        Some(wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: Some(1),
        })
    }
}

impl WgpuStream {
    /// Whether time is measured by the device's own clock.
    #[must_use]
    pub fn has_clock(&self) -> bool {
        self.gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// Waits for the work so far, and begins to measure the time of what follows.
    pub fn start_clock(&mut self) -> Result<(), KernelError> {
        self.sync()?;
        self.clock = Some(Clock::start(&self.gpu));
        Ok(())
    }

    /// Waits for the work since [`start_clock`](Self::start_clock) and gives the time from the beginning of its first kernel
    /// to the end of its last by the device's clock; where it has none, the time until the host has waited, which is the cost
    /// of a submission longer.
    pub fn stop_clock(&mut self) -> Result<Duration, KernelError> {
        match self.clock.take() {
            Some(Clock { queries: Some(queries), begun: true, .. }) => self.read_clock(&queries),
            Some(Clock { start, .. }) => {
                self.sync()?;
                Ok(start.elapsed())
            }
            None => Ok(Duration::ZERO),
        }
    }

    fn read_clock(&mut self, queries: &wgpu::QuerySet) -> Result<Duration, KernelError> {
        let bytes = u64::from(TIMES) * u64::from(wgpu::QUERY_SIZE);
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let buffer = self.gpu.buffer(bytes, usage)?;
        self.encoder().resolve_query_set(queries, 0..TIMES, &buffer, 0);
        let (fetch, _) = self.fetch_range(&buffer, 0..bytes as usize)?;
        let times: Vec<u64> = bytemuck::pod_collect_to_vec(&fetch.words()?);
        let ticks = times.get(1).copied().unwrap_or(0).saturating_sub(times.first().copied().unwrap_or(0));
        let period = f64::from(self.gpu.queue.get_timestamp_period());
        Ok(Duration::from_secs_f64(ticks as f64 * period * 1e-9))
    }
}
