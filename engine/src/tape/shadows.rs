//! Memory of gradients: for each storage that something trained has a part in, another one whose places stand for its places.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use ocelli_kernels::{DType, KernelError, Layout, Storage, View};

use super::Trained;
use crate::ctx::Ctx;
use crate::error::Result;

/// Zeros that are written at once, at most, where memory is dense.
const ZEROS: usize = 1 << 18;

/// Gradients of memory, by its identity.
#[derive(Default)]
pub(super) struct Shadows(HashMap<usize, Shadow>);

struct Shadow {
    /// The memory itself, so that the identity stays its own.
    values: Storage,
    grads: Storage,
    /// Bytes that may be other than zero; none is tracked of what is trained, which keeps its gradients.
    touched: Option<Range<usize>>,
    trained: bool,
}

/// Memory of gradients that no tape uses, all of it zeros.
#[derive(Default)]
pub(crate) struct Spare {
    storages: Vec<Storage>,
    zeros: Vec<u8>,
}

impl Shadows {
    /// Those of trained memory.
    pub fn new(trained: &[Trained]) -> Self {
        let of = |Trained { values, grads, .. }: &Trained| {
            let shadow =
                Shadow { values: values.clone(), grads: grads.clone(), touched: None, trained: true };
            (values.id(), shadow)
        };
        Self(trained.iter().map(of).collect())
    }

    /// The gradient's place for a view: zeros, where nothing was written yet.
    pub fn of(&mut self, cx: &mut Ctx, view: &View) -> Result<View> {
        if view.dtype() != DType::F32 {
            return Err(KernelError::WrongDType { expected: DType::F32, found: view.dtype() }.into());
        }
        let shadow = match self.0.entry(view.storage().id()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let (values, len) = (view.storage().clone(), view.storage().len());
                let spare = cx.spare.storages.iter().position(|storage| storage.len() == len);
                let grads = match spare {
                    Some(at) => cx.spare.storages.swap_remove(at),
                    None => cx.stream().alloc(len)?,
                };
                entry.insert(Shadow { values, grads, touched: None, trained: false })
            }
        };
        let bytes = view.byte_range();
        shadow.touched = Some(match &shadow.touched {
            Some(touched) => touched.start.min(bytes.start)..touched.end.max(bytes.end),
            None => bytes,
        });
        Ok(view.with_storage(shadow.grads.clone())?)
    }

    /// The gradient's place for a view, of memory that has one already.
    pub fn known(&self, view: &View) -> Result<Option<View>> {
        let shadow = self.0.get(&view.storage().id());
        Ok(shadow.map(|shadow| view.with_storage(shadow.grads.clone())).transpose()?)
    }

    /// Gives the memory to the next tape, as zeros. What cannot be made zeros is let go.
    pub fn retire(self, cx: &mut Ctx) {
        let mut storages = Vec::new();
        for Shadow { values, grads, touched, .. } in self.0.into_values().filter(|shadow| !shadow.trained) {
            let zeroed = touched.map_or(Ok(()), |bytes| {
                let layout = Layout::dense(&[bytes.len() / DType::F32.size()])?;
                clear(cx, &View::new(grads.clone(), bytes.start, layout, DType::F32)?)
            });
            drop(values);
            storages.extend(zeroed.is_ok().then_some(grads));
        }
        if !storages.is_empty() {
            cx.spare.storages = storages;
        }
    }
}

/// Makes a view zeros.
pub(super) fn clear(cx: &mut Ctx, view: &View) -> Result<()> {
    let bytes = view.bytes() as usize;
    let mut zeros = std::mem::take(&mut cx.spare.zeros);
    let dense = view.layout().is_dense() && bytes > ZEROS;
    zeros.resize(zeros.len().max(if dense { ZEROS } else { bytes }), 0);
    let cleared =
        if dense { in_pieces(cx, view, &zeros[..ZEROS]) } else { cx.stream().write(view, &zeros[..bytes]) };
    cx.spare.zeros = zeros;
    Ok(cleared?)
}

fn in_pieces(cx: &mut Ctx, view: &View, zeros: &[u8]) -> Result<(), KernelError> {
    let (size, end) = (view.dtype().size(), view.byte_range().end);
    for start in view.byte_range().step_by(zeros.len()) {
        let bytes = zeros.len().min(end - start);
        let piece = View::new(view.storage().clone(), start, Layout::dense(&[bytes / size])?, view.dtype())?;
        cx.stream().write(&piece, &zeros[..bytes])?;
    }
    Ok(())
}
