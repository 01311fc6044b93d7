//! Long chains of kernels, each of which reads what the one before it wrote: alone, recorded, and behind copies, zeroed memory and replays.
//! A kernel that begins too early, or memory that is not what it was asked for, gives another sum.

use std::collections::BTreeSet;
use std::sync::Arc;

use ocelli_kernels::cuda::{CudaDevice, CudaOp, CudaStream, KernelKey, PlanDriver};
use ocelli_kernels::ops::Pointwise;
use ocelli_kernels::{Arch, DType, KernelError, Queue, View};

/// More blocks than a device runs at once on half of its multiprocessors, each with little to do.
const SHAPE: [usize; 2] = [264, 64];
/// Launches of a chain.
const CHAIN: usize = 200;
/// Launches that are recorded together, and replays of them.
const RECORDED: (usize, usize) = (50, 3);
/// Turns of what happens between kernels.
const TURNS: usize = 20;

struct Sums {
    stream: CudaStream,
    step: View,
}

impl Sums {
    fn view(stream: &mut CudaStream) -> Result<View, KernelError> {
        let elements: usize = SHAPE.iter().product();
        let memory = stream.alloc(elements * DType::F32.size())?;
        Ok(View::dense(memory, &SHAPE, DType::F32)?)
    }

    fn on(device: &CudaDevice) -> Result<Self, KernelError> {
        let mut stream = device.queue();
        let step = Self::view(&mut stream)?;
        Ok(Self { stream, step })
    }

    /// From now on a launch adds this.
    fn set(&mut self, value: f32) -> Result<(), KernelError> {
        let values: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), self.step.len()).flatten().collect();
        self.stream.write(&self.step, &values)
    }

    fn add(&mut self, sum: &View, times: usize) -> Result<(), KernelError> {
        let op = Pointwise { add: Some(sum.clone()), ..Pointwise::new(self.step.clone(), sum.clone()) };
        let rows = Pointwise::cuda_variants().map_err(|why| KernelError::Device(why.to_owned()))?;
        (0..times).try_for_each(|_| self.stream.launch::<Pointwise>(&op, &rows[0]))
    }

    /// The least and the largest element.
    fn ends(&mut self, sum: &View) -> Result<(f32, f32), KernelError> {
        let mut bytes = vec![0; sum.len() * DType::F32.size()];
        self.stream.read(sum, &mut bytes)?;
        let values =
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        Ok(values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v))))
    }
}

/// A chain, the sum that it should give, and the least and largest that are there.
type Found = (&'static str, usize, (f32, f32));

/// Each chain with the sum that it should give, and the least and largest that are there.
fn chains(device: &CudaDevice) -> Result<Vec<Found>, KernelError> {
    let mut sums = Sums::on(device)?;
    let mut all = Vec::new();

    let sum = Sums::view(&mut sums.stream)?;
    sums.set(1.0)?;
    sums.add(&sum, CHAIN)?;
    all.push(("one behind the other", CHAIN, sums.ends(&sum)?));

    let sum = Sums::view(&mut sums.stream)?;
    for turn in 0..TURNS {
        sums.set(turn as f32)?;
        sums.add(&sum, 2)?;
    }
    all.push(("behind copies", TURNS * (TURNS - 1), sums.ends(&sum)?));

    sums.set(1.0)?;
    let mut least = (f32::INFINITY, f32::NEG_INFINITY);
    for _ in 0..TURNS {
        let sum = Sums::view(&mut sums.stream)?;
        sums.add(&sum, 2)?;
        let (low, high) = sums.ends(&sum)?;
        least = (least.0.min(low), least.1.max(high));
    }
    all.push(("behind zeroed memory", 2, least));

    let sum = Sums::view(&mut sums.stream)?;
    sums.stream.sync()?;
    sums.stream.record()?;
    let added = sums.add(&sum, RECORDED.0);
    let graph = sums.stream.recorded()?;
    added?;
    for turn in 0..RECORDED.1 {
        sums.set((turn + 1) as f32)?;
        sums.stream.replay(&graph)?;
        sums.add(&sum, 1)?;
    }
    let wanted = (RECORDED.0 + 1) * (1..=RECORDED.1).sum::<usize>();
    all.push(("recorded, with copies and launches between replays", wanted, sums.ends(&sum)?));
    Ok(all)
}

/// The kernels that the chains take.
pub fn keys(arch: Arch) -> BTreeSet<KernelKey> {
    let driver = Arc::new(PlanDriver::of_arch(arch));
    chains(&CudaDevice::on(driver.clone(), Arc::default())).expect("chains");
    driver.keys().into_iter().collect()
}

fn hold(device: &CudaDevice) {
    let mut failed = Vec::new();
    for (what, wanted, (low, high)) in chains(device).unwrap_or_else(|error| panic!("{error}")) {
        let right = low == wanted as f32 && high == wanted as f32;
        let word = if right { "ok".to_owned() } else { format!("FAILED: {wanted}, found {low} to {high}") };
        println!("case: a chain of kernels {what}: {word}");
        failed.extend((!right).then_some((what, wanted, low, high)));
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn chains_on_a_gpu() {
    if let Some(device) = super::gpu() {
        hold(&device);
    }
}

#[test]
fn chains_emulated() {
    if let Some(device) = super::emulated(Arch::Sm90a) {
        hold(&device);
    }
}
