//! Operands of benchmarks: random weights that rotate through more memory than the caches hold, and activations.

use std::sync::Arc;

use half::{bf16, f16};
use ocelli_kernels::quant::{e4m3, to_e8m0};
use ocelli_kernels::{
    DType, Element, Format, KernelError, Operands as _, ShapeError, Storage, StreamId, View, Weights,
};

use crate::machine;

/// Normal values that activations and weights repeat; a prime, so that no row or column sees the same ones in step.
const VALUES: usize = 65_521;

/// Memory for the operands of ops that run one after another.
pub struct Operands {
    /// The identity of everything that ops write.
    pub id: StreamId,
    values: Vec<f32>,
    next_value: usize,
    floats: Slab,
    ints: Option<Slab>,
    /// Scales, by type.
    scales: Vec<(DType, Slab)>,
    slab_bytes: usize,
}

/// Read-only memory from which weights are cut, one after another, from the beginning again at its end. It lies in huge
/// pages where the system gives them, as it gives them to weights that are mapped from a file.
struct Slab {
    storage: Storage,
    /// Address of the first byte.
    base: usize,
    next: usize,
}

impl Slab {
    fn new(bytes: usize, block: &[u8]) -> Slab {
        // Room for the first matrix to start at a page.
        let bytes = bytes + 4096;
        let mut memory: Vec<u8> = Vec::with_capacity(bytes);
        machine::advise_huge_pages(memory.as_mut_ptr(), bytes);
        while memory.len() < bytes {
            let rest = bytes - memory.len();
            memory.extend_from_slice(&block[..block.len().min(rest)]);
        }
        Slab { base: memory.as_ptr() as usize, storage: Storage::shared(Arc::new(memory)), next: 0 }
    }

    fn cut(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError> {
        const ALIGN: usize = 4096;
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let aligned = |offset: usize| (self.base + offset).next_multiple_of(ALIGN) - self.base;
        let start = aligned(self.next);
        let start = if start + bytes > self.storage.len() { aligned(0) } else { start };
        if start + bytes > self.storage.len() {
            return Err(KernelError::OutOfMemory { bytes, device: "the memory for weights".into() });
        }
        self.next = start + bytes;
        let layout = ocelli_kernels::Layout::dense(shape)?;
        Ok(View::new(self.storage.clone(), start, layout, dtype)?)
    }
}

impl Operands {
    /// Memory of about a gigabyte (a quarter of the machine's memory where that is less), filled from a fixed seed.
    pub fn new() -> Operands {
        let memory = machine::memory_bytes().unwrap_or(4 << 30);
        Operands::sized((memory / 4).clamp(64 << 20, 1 << 30) as usize)
    }

    /// The same with so many bytes for weights: what one op asks for must fit.
    pub fn sized(slab_bytes: usize) -> Operands {
        let mut random = Random(0x6f63_656c_6c69);
        let values: Vec<f32> = (0..VALUES).map(|_| random.normal()).collect();
        // Values of the size that weights have. Two bf16 side by side are an f32 of nearly the value of the second,
        // so the same bytes serve matrices of both types.
        let block: Vec<u8> = values
            .iter()
            .cycle()
            .take(2 << 20)
            .flat_map(|v| bf16::from_f32(0.02 * v).to_le_bytes())
            .collect();
        Operands {
            id: StreamId::fresh(),
            values,
            next_value: 0,
            floats: Slab::new(slab_bytes, &block),
            ints: None,
            scales: Vec::new(),
            slab_bytes,
        }
    }

    /// How many sets of weights of `bytes` each the timing of one op rotates through, to have `cold` bytes between the turns
    /// of one.
    pub fn sets(&self, bytes: u64, cold: u64) -> usize {
        let fit = (self.slab_bytes as u64 / bytes.max(1)).max(1) as usize;
        crate::stats::rotation(bytes, cold).min(fit).min(512)
    }

    /// All bytes of the memory that a view lies in; `None` for weights and tables, which nobody writes.
    pub fn whole(&self, view: &View) -> Result<Option<View>, KernelError> {
        let mut tables =
            std::iter::once(&self.floats).chain(&self.ints).chain(self.scales.iter().map(|(_, slab)| slab));
        let is_table = |slab: &Slab| slab.storage.same(view.storage());
        if !matches!(view.storage(), Storage::Host(_)) || tables.any(is_table) {
            return Ok(None);
        }
        Ok(Some(View::dense(view.storage().clone(), &[view.storage().len()], DType::U8)?))
    }

    /// A copy of the bytes of [`whole`](Self::whole) memory.
    pub fn snapshot(&self, whole: &View) -> Result<Vec<u8>, KernelError> {
        let base = whole.read_bytes_ptr(self.id)?;
        // SAFETY: the view is dense and has `len` bytes, for which the pointer is valid; no op runs now.
        Ok(unsafe { std::slice::from_raw_parts(base, whole.len()) }.to_vec())
    }

    /// Sets the bytes of [`whole`](Self::whole) memory.
    pub fn restore(&self, whole: &View, bytes: &[u8]) -> Result<(), KernelError> {
        if bytes.len() != whole.len() {
            return Err(ShapeError::mismatch("bytes to restore", whole.len(), bytes.len()).into());
        }
        self.fill(whole, |i| bytes[i])
    }

    fn matrix(&mut self, format: Format, n: usize, k: usize, bias: bool) -> Result<Weights, KernelError> {
        let mut planes = vec![];
        for plane in format.planes(n, k) {
            let shape = [plane.rows, plane.cols];
            planes.push(match (format, plane.dtype) {
                (Format::Dense(dtype), _) => self.table(&shape, dtype)?,
                _ if plane.name == "order" => {
                    let groups = format.groups(k).max(1);
                    self.ints(&shape, &|col| ((7 * col + 3) % groups) as i32)?
                }
                (_, DType::I32) => {
                    let bytes = self.slab_bytes;
                    self.ints
                        .get_or_insert_with(|| Slab::new(bytes, &random_bytes()))
                        .cut(&shape, DType::I32)?
                }
                (_, dtype) => self.scales(&shape, dtype)?,
            });
        }
        let bias_type = format.dense().unwrap_or(DType::F32);
        let bias = if bias { Some(self.table(&[n], bias_type)?) } else { None };
        Ok(Weights::new(format, n, k, planes, bias)?)
    }

    fn scales(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError> {
        if !self.scales.iter().any(|(known, _)| *known == dtype) {
            self.scales.push((dtype, Slab::new(self.slab_bytes / 8, &scales(dtype))));
        }
        let found = self.scales.iter_mut().find(|(known, _)| *known == dtype);
        let (_, slab) = found.ok_or_else(|| ShapeError::new("scales of a benchmark were lost"))?;
        slab.cut(shape, dtype)
    }

    /// Sets each element of a dense view of this memory.
    fn fill<T: Element>(&self, view: &View, value: impl Fn(usize) -> T) -> Result<(), KernelError> {
        let base = view.write_ptr::<T>(self.id)?;
        for i in 0..view.len() {
            // SAFETY: the view is dense and has `len` elements, for which the pointer is valid; no op runs now.
            unsafe { base.add(i).write(value(i)) };
        }
        Ok(())
    }
}

impl ocelli_kernels::Operands for Operands {
    /// A random float matrix or table that is read only, of values about `0.02`.
    fn table(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError> {
        self.floats.cut(shape, dtype)
    }

    /// A random weight matrix `[n, k]`, stacked from `parts` matrices of nearly equal height.
    fn weights(
        &mut self,
        format: Format,
        n: usize,
        k: usize,
        parts: usize,
        bias: bool,
    ) -> Result<Weights, KernelError> {
        let parts = parts.max(1);
        let step = (n / parts).next_multiple_of(32);
        let mut all = vec![];
        let mut first = 0;
        for part in 0..parts {
            let rows = if part + 1 == parts { n - first } else { step.min(n - first) };
            all.push(self.matrix(format, rows, k, bias)?);
            first += rows;
        }
        Ok(Weights::stack(all)?)
    }

    /// Normal values of deviation one, which ops may write.
    fn activations(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError> {
        let view = self.output(shape, dtype)?;
        let count = view.len();
        let start = self.next_value;
        self.next_value = (start + count) % VALUES;
        let value = |i: usize| self.values[(start + i) % VALUES];
        match dtype {
            DType::F32 => self.fill(&view, value)?,
            DType::BF16 => self.fill(&view, |i| bf16::from_f32(value(i)))?,
            DType::F16 => self.fill(&view, |i| f16::from_f32(value(i)))?,
            DType::U8 => self.fill(&view, |i| (128.0 + 48.0 * value(i)).clamp(0.0, 255.0) as u8)?,
            other => {
                return Err(ShapeError::mismatch("activations of a benchmark", "floats or u8", other).into());
            }
        }
        Ok(view)
    }

    /// Integers given one by one.
    fn ints(&mut self, shape: &[usize], value: &dyn Fn(usize) -> i32) -> Result<View, KernelError> {
        let view = self.output(shape, DType::I32)?;
        self.fill(&view, value)?;
        Ok(view)
    }

    /// f32 values given one by one.
    fn floats(&mut self, shape: &[usize], value: &dyn Fn(usize) -> f32) -> Result<View, KernelError> {
        let view = self.output(shape, DType::F32)?;
        self.fill(&view, value)?;
        Ok(view)
    }

    /// Zeroed memory that ops may write.
    fn output(&mut self, shape: &[usize], dtype: DType) -> Result<View, KernelError> {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Ok(View::dense(Storage::host(bytes, self.id)?, shape, dtype)?)
    }
}

impl Default for Operands {
    fn default() -> Self {
        Self::new()
    }
}

fn random_bytes() -> Vec<u8> {
    let mut random = Random(0x696e_7473);
    (0..(1 << 19)).flat_map(|_| random.bits().to_le_bytes()).collect()
}

/// Scales that make 4-bit and 8-bit weights of a usable size.
fn scales(dtype: DType) -> Vec<u8> {
    let mut random = Random(0x7363_616c);
    let mut bytes = Vec::new();
    for _ in 0..1 << 20 {
        let scale = 0.001 + 0.001 * random.unit() as f32;
        match dtype {
            DType::F32 => bytes.extend(scale.to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f32(scale).to_le_bytes()),
            // Bytes of about one: a factor of the matrix would make them small.
            DType::E4M3 => bytes.push(e4m3::nearest(500.0 * scale)),
            DType::E8M0 => bytes.push(to_e8m0(scale)),
            _ => bytes.extend(bf16::from_f32(scale).to_le_bytes()),
        }
    }
    bytes
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocelli_kernels::Oracle;

    #[test]
    fn weights_and_activations_have_sensible_values() {
        let mut operands = Operands::sized(1 << 20);
        let oracle = Oracle::new(operands.id, false);
        for format in ["f32", "bf16", "int8g32", "int4g32"] {
            let w = operands.weights(format.parse().unwrap(), 64, 96, 3, true).unwrap();
            assert_eq!((w.parts().len(), w.n(), w.k()), (3, 64, 96));
            let values = oracle.weights(&w).unwrap();
            let mean_square = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
            assert!((1e-6..0.1).contains(&mean_square), "{format}: {mean_square}");
        }
        let x = oracle.read(&operands.activations(&[7, 1000], DType::BF16).unwrap()).unwrap();
        let mean_square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        assert!((0.9..1.1).contains(&mean_square));
    }

    #[test]
    fn sets_of_weights_lie_apart() {
        let mut operands = Operands::sized(4 << 20);
        let a = operands.table(&[1000, 100], DType::F32).unwrap();
        let b = operands.table(&[1000, 100], DType::F32).unwrap();
        assert!(!a.overlaps(&b));
        let sets = |bytes| operands.sets(bytes, 1 << 30);
        assert!(sets(1 << 40) == 1 && sets(1) == 512 && sets(1 << 20) == 4);
    }
}
