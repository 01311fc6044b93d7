//! Gradients through memory that is written again, against sums worked out by hand.

use ocelli_kernels::ops::{Activation, Pointwise, Softmax};
use ocelli_kernels::{Backend, DType, DeviceOptions, Storage, View, Weights};

use super::Trained;
use crate::ctx::{Ctx, Precision};
use crate::error::Result;
use crate::tensor::Tensor;

/// Two trained numbers, `[1, 1]` each, in one buffer with their gradients.
struct Two {
    cx: Ctx,
    values: Storage,
    grads: Storage,
}

impl Two {
    fn new(first: f32, second: f32) -> Result<Self> {
        let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default())?;
        let mut cx = Ctx::new(&*device, Precision::default())?;
        let (values, grads) = (cx.stream().alloc(8)?, cx.stream().alloc(8)?);
        let all = View::dense(values.clone(), &[2], DType::F32)?;
        cx.stream().write(&all, bytemuck::cast_slice(&[first, second]))?;
        Ok(Self { cx, values, grads })
    }

    /// Begins to record; the first number is trained, the second as `both` says.
    fn record(&mut self, both: bool) {
        let (values, grads) = (self.values.clone(), self.grads.clone());
        let end = if both { 8 } else { 4 };
        self.cx.record(&[Trained { values, grads, ranges: std::iter::once(0..end).collect() }]);
    }

    fn weight(&self, number: usize) -> Result<Weights> {
        let view = View::dense(self.values.clone(), &[2, 1], DType::F32)?;
        Ok(Weights::dense(view.narrow(0, number, 1)?, None)?)
    }

    /// `to = act(x * weight)`.
    fn product(&mut self, x: &Tensor, number: usize, act: Activation, to: &Tensor) -> Result<()> {
        let w = self.weight(number)?;
        let mut op = ocelli_kernels::ops::Matmul::new(self.cx.view(x)?, w, self.cx.view(to)?);
        op.act = act;
        self.cx.exec("product", &op)
    }

    /// Goes back from `result` with a gradient of 1, and gives those of the two numbers.
    fn back(&mut self, result: &Tensor) -> Result<[f32; 2]> {
        let mut tape = self.cx.recorded().expect("a tape");
        let one = self.cx.upload(&[1, 1], &[1f32])?;
        let one = self.cx.view(&one)?;
        tape.backward(&mut self.cx, result, &one)?;
        self.cx.forget(tape);
        let mut grads = [0f32; 2];
        let view = View::dense(self.grads.clone(), &[2], DType::F32)?;
        self.cx.stream().read(&view, bytemuck::cast_slice_mut(&mut grads))?;
        Ok(grads)
    }
}

#[test]
fn memory_that_is_written_again() -> Result<()> {
    let mut two = Two::new(3.0, 5.0)?;
    two.record(true);
    let x = two.cx.upload(&[1, 1], &[2f32])?;
    let y = two.cx.upload(&[1, 1], &[7f32])?;
    let (buffer, sum) = (two.cx.alloc(&[1, 1], DType::F32)?, two.cx.alloc(&[1, 1], DType::F32)?);
    // sum = relu(2 a) * relu(2 a) + relu(7 b): the square needs what the second product overwrites.
    two.product(&x, 0, Activation::Relu, &buffer)?;
    let (of_buffer, of_sum) = (two.cx.view(&buffer)?, two.cx.view(&sum)?);
    let square =
        Pointwise { by: Some(of_buffer.clone()), ..Pointwise::new(of_buffer.clone(), of_sum.clone()) };
    two.cx.exec("square", &square)?;
    two.product(&y, 1, Activation::Relu, &buffer)?;
    let add = Pointwise { add: Some(of_sum.clone()), ..Pointwise::new(of_buffer, of_sum) };
    two.cx.exec("sum", &add)?;
    assert_eq!(two.cx.download(&sum)?, [36.0 + 35.0]);
    // 2 * (2 a) * 2, and 7.
    assert_eq!(two.back(&sum)?, [24.0, 7.0]);
    Ok(())
}

#[test]
fn sums_in_place_and_untrained_numbers() -> Result<()> {
    let mut two = Two::new(3.0, 5.0)?;
    two.record(false);
    let x = two.cx.upload(&[1, 1], &[2f32])?;
    let h = two.cx.alloc(&[1, 1], DType::F32)?;
    two.product(&x, 0, Activation::None, &h)?;
    // h = 2 a, h += 2 b of what is not trained, h = -h in place, h += a h with h before: -(2 a + 2 b) (1 + a).
    let view = two.cx.view(&h)?;
    let mut op = ocelli_kernels::ops::Matmul::new(two.cx.view(&x)?, two.weight(1)?, view.clone());
    op.residual = Some(view.clone());
    two.cx.exec("residual", &op)?;
    two.cx.exec("turn", &Pointwise { scale: -1.0, ..Pointwise::new(view.clone(), view.clone()) })?;
    let product = two.cx.alloc(&[1, 1], DType::F32)?;
    two.product(&h, 0, Activation::None, &product)?;
    let add = Pointwise { add: Some(view.clone()), ..Pointwise::new(two.cx.view(&product)?, view) };
    two.cx.exec("sum", &add)?;
    assert_eq!(two.cx.download(&h)?, [-16.0 * 4.0]);
    // d/da of -(2 a + 2 b)(1 + a) is -2 (1 + a) - (2 a + 2 b).
    assert_eq!(two.back(&h)?, [-8.0 - 16.0, 0.0]);
    Ok(())
}

#[test]
fn what_has_no_gradient_is_told() -> Result<()> {
    let mut two = Two::new(1.0, 1.0)?;
    two.record(true);
    let x = two.cx.upload(&[1, 1], &[2f32])?;
    let (h, out) = (two.cx.alloc(&[1, 1], DType::F32)?, two.cx.alloc(&[1, 1], DType::F32)?);
    // What nothing trained is behind may be anything.
    let untrained = Softmax { x: two.cx.view(&x)?, out: two.cx.view(&out)? };
    two.cx.exec("shares", &untrained)?;
    let error = {
        let tape = two.cx.recorded().expect("a tape");
        let (mut tape, one) = (tape, two.cx.view(&x)?);
        tape.backward(&mut two.cx, &out, &one).expect_err("nothing trained")
    };
    assert_eq!(error.to_string(), "nothing that is trained has a part in the loss");
    two.record(true);
    two.product(&x, 0, Activation::None, &h)?;
    let op = Softmax { x: two.cx.view(&h)?, out: two.cx.view(&out)? };
    let error = two.cx.exec("layer.3", &op).expect_err("no gradient").to_string();
    assert!(error.starts_with("layer.3: softmax: its gradient is not known"), "{error}");
    Ok(())
}
