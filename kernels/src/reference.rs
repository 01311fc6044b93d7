//! The stream that runs each op's f64 reference on the host.

use crate::buffer::{Storage, StreamId, View};
use crate::op::{Device, Exec, Op, Queue};
use crate::ops::Stream;
use crate::oracle::{Oracle, encode};
use crate::select::Picks;
use crate::spec::{Caps, KernelError};

/// Runs references: slow, and as exact as the types of the outputs allow.
pub struct ReferenceStream {
    id: StreamId,
    caps: Caps,
}

impl Default for ReferenceStream {
    fn default() -> Self {
        let caps = Caps { device: "f64 reference".into(), units: 1, ..Caps::default() };
        Self { id: StreamId::fresh(), caps }
    }
}

impl Queue for ReferenceStream {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&mut self, bytes: usize) -> Result<Storage, KernelError> {
        Storage::host(bytes, self.id)
    }

    fn write(&mut self, to: &View, bytes: &[u8]) -> Result<(), KernelError> {
        to.fill_from(bytes, self.id)
    }

    fn read(&mut self, from: &View, bytes: &mut [u8]) -> Result<(), KernelError> {
        from.copy_to(bytes, self.id)
    }
}

impl<O: Op> Exec<O> for ReferenceStream {
    fn exec(&mut self, op: &O) -> Result<(), KernelError> {
        op.spec().map_err(|error| error.of_op(O::NAME))?;
        let mut oracle = Oracle::new(self.id, false);
        op.reference(&mut oracle)?;
        for expected in oracle.into_expected() {
            let (dtype, size) = (expected.view.dtype(), expected.view.dtype().size());
            let mut new = Vec::with_capacity(expected.values.len() * size);
            for &value in &expected.values {
                encode(dtype, value, &mut new);
            }
            let Some(indices) = expected.indices else {
                expected.view.fill_from(&new, self.id)?;
                continue;
            };
            let mut all = vec![0; expected.view.len() * size];
            expected.view.copy_to(&mut all, self.id)?;
            for (index, element) in indices.into_iter().zip(new.chunks_exact(size)) {
                all[index * size..][..size].copy_from_slice(element);
            }
            expected.view.fill_from(&all, self.id)?;
        }
        Ok(())
    }

    fn accepts(&self, op: &O) -> bool {
        op.spec().is_ok()
    }
}

/// The f64 reference as a device.
#[derive(Default)]
pub struct ReferenceDevice(ReferenceStream);

impl Device for ReferenceDevice {
    fn caps(&self) -> &Caps {
        &self.0.caps
    }

    fn stream(&self) -> Result<Box<dyn Stream>, KernelError> {
        Ok(Box::new(ReferenceStream::default()))
    }

    fn prefer(&mut self, _: Picks) {}
}
