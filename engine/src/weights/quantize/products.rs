//! Products of large matrices on the CPU, by the kernels that run models.

use std::sync::Arc;

use ocelli_kernels::ops::Matmul;
use ocelli_kernels::{
    Backend, DType, DeviceOptions, Exec, KernelError, ShapeError, Storage, Stream, View, Weights,
};

/// Values that products are made of at a time.
const CHUNK: usize = 1 << 22;

/// Rows of a sum of products that are made at a time: what is right of them is what is below.
const STRIPE: usize = 1024;

/// Numbers that ops read where they lie.
#[derive(Debug)]
pub struct Floats(pub Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Floats {
    fn view(self: &Arc<Self>, shape: &[usize]) -> Result<View, ShapeError> {
        View::dense(Storage::shared(self.clone()), shape, DType::F32)
    }
}

/// A sum of products `x^T x`, `[k, k]`, in work: what is right of the stripe on the diagonal is not made.
pub(crate) struct Gram(View);

/// A queue of the CPU.
pub(crate) struct Products(Box<dyn Stream>);

impl Products {
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self(ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default())?.stream()?))
    }

    /// Zeros.
    pub fn gram(&mut self, k: usize) -> Result<Gram, KernelError> {
        let bytes = k.checked_mul(k).and_then(|count| count.checked_mul(4)).unwrap_or(usize::MAX);
        Ok(Gram(View::dense(self.0.alloc(bytes)?, &[k, k], DType::F32)?))
    }

    /// `gram += x^T x`; `x: [rows, k]`.
    pub fn add(&mut self, gram: &Gram, x: &[f32]) -> Result<(), KernelError> {
        let k = gram.0.size(0).max(1);
        for x in x.chunks((CHUNK / k).max(1) * k) {
            let rows = x.len() / k;
            let turned = (0..k).flat_map(|col| x.iter().skip(col).step_by(k).copied()).collect();
            let turned = Arc::new(Floats(turned)).view(&[k, rows])?;
            for first in (0..k).step_by(STRIPE) {
                let count = STRIPE.min(k - first);
                let (own, upto) = (turned.narrow(0, first, count)?, turned.narrow(0, 0, first + count)?);
                let out = gram.0.narrow(0, first, count)?.narrow(1, 0, first + count)?;
                self.multiply(&own, &upto, &out, true)?;
            }
        }
        Ok(())
    }

    /// The sum.
    pub fn take(&mut self, gram: &Gram) -> Result<Floats, KernelError> {
        let (k, mut values) = (gram.0.size(0), self.read(&gram.0)?);
        for first in (0..k).step_by(STRIPE) {
            let (above, below) = values.split_at_mut(k.min(first + STRIPE) * k);
            for (below, col) in below.chunks_exact(k).zip(first + STRIPE..) {
                let rows = above.chunks_exact_mut(k).skip(first);
                rows.zip(&below[first..]).for_each(|(row, value)| row[col] = *value);
            }
        }
        Ok(Floats(values))
    }

    /// A matrix of numbers without a meaning.
    pub fn alloc(&mut self, shape: &[usize]) -> Result<View, KernelError> {
        let bytes = shape.iter().try_fold(4usize, |bytes, size| bytes.checked_mul(*size));
        Ok(View::dense(self.0.alloc(bytes.unwrap_or(usize::MAX))?, shape, DType::F32)?)
    }

    /// The numbers of a matrix or a part of one.
    pub fn read(&mut self, view: &View) -> Result<Vec<f32>, KernelError> {
        let mut values = vec![0.0f32; view.len()];
        self.0.read(view, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Sets them.
    pub fn write(&mut self, view: &View, values: &[f32]) -> Result<(), KernelError> {
        self.0.write(view, bytemuck::cast_slice(values))
    }

    /// `out = x w^T`, or `out += x w^T`.
    pub fn multiply(&mut self, x: &View, w: &View, out: &View, add: bool) -> Result<(), KernelError> {
        let mut op = Matmul::new(x.clone(), Weights::dense(w.clone(), None)?, out.clone());
        op.residual = add.then(|| out.clone());
        Exec::<Matmul>::exec(&mut *self.0, &op)
    }

    /// The sum of `e gram e^T` over the rows of `e: [rows, k]`: the squares of all `e x`.
    pub fn squares(&mut self, e: Vec<f32>, gram: &Arc<Floats>) -> Result<f64, KernelError> {
        let k = gram.0.len().isqrt().max(1);
        let rows = e.len() / k;
        if rows == 0 {
            return Ok(0.0);
        }
        let e = Arc::new(Floats(e));
        let out = View::dense(self.0.alloc(rows * k * 4)?, &[rows, k], DType::F32)?;
        let op = Matmul::new(e.view(&[rows, k])?, Weights::dense(gram.view(&[k, k])?, None)?, out);
        Exec::<Matmul>::exec(&mut *self.0, &op)?;
        let mut values = vec![0.0f32; rows * k];
        self.0.read(&op.out, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values.iter().zip(&e.0).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More columns than a stripe has: what is right of the diagonal is what is below it.
    #[test]
    fn sums_of_many_columns_are_whole() {
        let mut products = Products::new().unwrap();
        let (rows, k) = (2, STRIPE + 40);
        let x: Vec<f32> = (0..rows * k).map(|i| ((i * 7919) % 9) as f32 - 4.0).collect();
        let gram = products.gram(k).unwrap();
        products.add(&gram, &x).unwrap();
        products.add(&gram, &x).unwrap();
        let found = products.take(&gram).unwrap().0;
        // Sums of whole numbers are exact.
        let expected = |at: usize| 2.0 * (x[at / k] * x[at % k] + x[k + at / k] * x[k + at % k]);
        assert!((0..k * k).all(|at| found[at] == expected(at)));
    }

    #[test]
    fn squares_are_those_of_the_products() {
        let mut products = Products::new().unwrap();
        let (rows, k, n) = (37, 24, 5);
        let noise = |seed: usize, len: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7919 + seed) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let (x, e) = (noise(1, rows * k), noise(2, n * k));
        let gram = products.gram(k).unwrap();
        let (first, rest) = x.split_at(10 * k);
        products.add(&gram, first).unwrap();
        products.add(&gram, rest).unwrap();
        let gram = Arc::new(products.take(&gram).unwrap());
        let mut expected = 0.0;
        for e in e.chunks(k) {
            for x in x.chunks(k) {
                let dot: f64 = e.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                expected += dot * dot;
            }
        }
        let found = products.squares(e, &gram).unwrap();
        assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
    }
}
