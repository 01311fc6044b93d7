//! Checkpoints that are not there yet: what a model of a configuration asks for.

use std::sync::{Arc, Mutex};

use ocelli_kernels::{DType, Storage, View};

use super::file::AlignedCopy;
use super::{Checkpoint, TensorFile, WeightError};

/// Tensors that were asked for.
pub(super) struct Imagined {
    asked: Mutex<Vec<(String, Vec<usize>)>>,
}

impl Checkpoint {
    /// A checkpoint that has whatever tensor a model cannot do without: zeros of the shape that is asked for, f32. It has none that
    /// a model merely may have. `label` is what errors call it.
    ///
    /// # Errors
    /// Never: an empty file is valid.
    pub fn imagined(label: &str) -> Result<Self, WeightError> {
        let empty = [&2u64.to_le_bytes()[..], b"{}"].concat();
        let file = TensorFile::in_memory(label, Arc::from(empty))?;
        let mut checkpoint = Self::of_file(file).planned();
        checkpoint.imagined = Some(Imagined { asked: Mutex::default() });
        Ok(checkpoint)
    }

    /// Names and shapes of what was asked for so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<(String, Vec<usize>)> {
        let asked = self.imagined.as_ref().and_then(|imagined| imagined.asked.lock().ok());
        asked.map(|asked| asked.clone()).unwrap_or_default()
    }

    /// Whether absent tensors are imagined.
    pub(super) const fn imagines(&self) -> bool {
        self.imagined.is_some()
    }

    /// A tensor that is not there; `None` where none is imagined.
    pub(super) fn imagine(&self, name: &str, shape: &[usize]) -> Option<Result<View, WeightError>> {
        let imagined = self.imagined.as_ref()?;
        if let Ok(mut asked) = imagined.asked.lock()
            && !asked.iter().any(|(known, _)| known == name)
        {
            asked.push((name.to_owned(), shape.to_vec()));
        }
        let bytes = DType::F32.size() * shape.iter().product::<usize>();
        let zeros = Storage::shared(Arc::new(AlignedCopy::zeros(bytes)));
        let view = View::dense(zeros, shape, DType::F32);
        Some(view.map_err(|error| WeightError::shape(self.path(), name, &error)))
    }

    /// The values of a tensor that was imagined.
    pub(super) fn imagined_floats(&self, name: &str) -> Option<Vec<f32>> {
        let asked = self.imagined.as_ref()?.asked.lock().ok()?;
        let (_, shape) = asked.iter().find(|(known, _)| known == name)?;
        Some(vec![0.0; shape.iter().product()])
    }
}
