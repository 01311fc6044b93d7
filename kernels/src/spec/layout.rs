//! Shapes and strides.

use std::fmt;

use super::ShapeError;

/// The largest rank of a view.
pub const MAX_RANK: usize = 4;

/// Shape and strides of a view, both in elements, outermost axis first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
    rank: u8,
}

impl Layout {
    /// A row-major layout without gaps. Axes beyond [`MAX_RANK`] are an error.
    pub fn dense(shape: &[usize]) -> Result<Self, ShapeError> {
        let mut strides = [0; MAX_RANK];
        let mut stride = 1usize;
        for (axis, &size) in shape.iter().enumerate().rev() {
            if axis < MAX_RANK {
                strides[axis] = stride;
            }
            stride = stride.checked_mul(size.max(1)).ok_or_else(|| ShapeError::too_large(shape))?;
        }
        Self::strided(shape, &strides[..shape.len().min(MAX_RANK)])
    }

    /// A layout with explicit strides. Errors if the rank is above [`MAX_RANK`] or its extent overflows.
    pub fn strided(shape: &[usize], strides: &[usize]) -> Result<Self, ShapeError> {
        if shape.len() > MAX_RANK || shape.len() != strides.len() {
            return Err(ShapeError::new(format!(
                "layout: {} axes and {} strides; at most {MAX_RANK} axes, one stride each",
                shape.len(),
                strides.len()
            )));
        }
        let mut layout = Self { shape: [1; MAX_RANK], strides: [0; MAX_RANK], rank: shape.len() as u8 };
        layout.shape[..shape.len()].copy_from_slice(shape);
        layout.strides[..shape.len()].copy_from_slice(strides);
        let mut extent = 1usize;
        for (&size, &stride) in shape.iter().zip(strides) {
            extent = size
                .saturating_sub(1)
                .checked_mul(stride)
                .and_then(|reach| extent.checked_add(reach))
                .filter(|&extent| extent <= isize::MAX as usize / 8)
                .ok_or_else(|| ShapeError::too_large(shape))?;
        }
        Ok(layout)
    }

    /// Sizes of the axes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank as usize]
    }

    /// Strides of the axes, in elements.
    #[must_use]
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank as usize]
    }

    /// Number of axes.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Size of an axis; 1 for an axis that does not exist.
    #[must_use]
    pub fn size(&self, axis: usize) -> usize {
        self.shape.get(axis).copied().unwrap_or(1)
    }

    /// Stride of an axis in elements; 0 for an axis that does not exist.
    #[must_use]
    pub fn stride(&self, axis: usize) -> usize {
        self.strides.get(axis).copied().unwrap_or(0)
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements from the first to one past the last that is addressed; 0 if empty.
    #[must_use]
    pub fn extent(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        1 + self.shape().iter().zip(self.strides()).map(|(&size, &stride)| (size - 1) * stride).sum::<usize>()
    }

    /// Whether elements follow each other in row-major order without gaps.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        let mut stride = 1;
        for (&size, &have) in self.shape().iter().zip(self.strides()).rev() {
            if size != 1 && have != stride {
                return false;
            }
            stride *= size;
        }
        true
    }

    /// Whether the last axis is contiguous, as every kernel asks.
    #[must_use]
    pub fn rows_contiguous(&self) -> bool {
        self.rank == 0 || self.size(self.rank() - 1) <= 1 || self.stride(self.rank() - 1) == 1
    }

    /// Whether two different indices address one element.
    #[must_use]
    pub fn overlaps_itself(&self) -> bool {
        let mut axes: Vec<(usize, usize)> =
            self.shape().iter().zip(self.strides()).map(|(&n, &s)| (n, s)).filter(|&(n, _)| n > 1).collect();
        axes.sort_by_key(|&(_, stride)| stride);
        let mut reach = 1;
        for (size, stride) in axes {
            if stride < reach {
                return true;
            }
            reach += (size - 1) * stride;
        }
        false
    }

    /// The sub-range `start..start + len` of an axis, with the offset of its first element.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<(Self, usize), ShapeError> {
        if axis >= self.rank() || start.checked_add(len).is_none_or(|end| end > self.size(axis)) {
            return Err(ShapeError::new(format!(
                "narrow: {self:?} has no range {start}..{} on axis {axis}",
                start.saturating_add(len)
            )));
        }
        let mut layout = *self;
        layout.shape[axis] = len;
        Ok((layout, start * self.stride(axis)))
    }

    /// The same elements in another shape; splits and merges of axes that need no copy only.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, ShapeError> {
        let fail =
            || ShapeError::new(format!("reshape: {self:?} cannot be seen as {shape:?} without a copy"));
        if shape.len() > MAX_RANK || shape.iter().product::<usize>() != self.len() {
            return Err(fail());
        }
        if self.is_empty() || self.is_dense() {
            return Self::dense(shape);
        }
        // Runs of old axes that are contiguous in themselves, innermost first, as (elements, stride).
        let mut runs: Vec<(usize, usize)> = Vec::with_capacity(MAX_RANK);
        for axis in (0..self.rank()).rev().filter(|&axis| self.size(axis) != 1) {
            match runs.last_mut() {
                Some((count, stride)) if self.stride(axis) == *stride * *count => *count *= self.size(axis),
                _ => runs.push((self.size(axis), self.stride(axis))),
            }
        }
        let mut strides = vec![1; shape.len()];
        let (mut runs, mut run, mut done) = (runs.into_iter(), (1, 1), 1);
        for axis in (0..shape.len()).rev().filter(|&axis| shape[axis] != 1) {
            if done == run.0 {
                run = runs.next().ok_or_else(fail)?;
                done = 1;
            }
            if !(run.0 / done).is_multiple_of(shape[axis]) {
                return Err(fail());
            }
            strides[axis] = run.1 * done;
            done *= shape[axis];
        }
        Self::strided(shape, &strides)
    }

    /// Calls `visit` with the offset of each element, in row-major order of the indices.
    pub fn for_each_offset(&self, mut visit: impl FnMut(usize)) {
        let (shape, strides) = (self.shape, self.strides);
        if self.is_empty() {
            return;
        }
        for a in 0..shape[0] {
            for b in 0..shape[1] {
                for c in 0..shape[2] {
                    let base = a * strides[0] + b * strides[1] + c * strides[2];
                    for d in 0..shape[3] {
                        visit(base + d * strides[3]);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape())?;
        if self.is_dense() { Ok(()) } else { write!(f, " strides {:?}", self.strides()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(layout: &Layout) -> Vec<usize> {
        let mut all = Vec::new();
        layout.for_each_offset(|offset| all.push(offset));
        all
    }

    #[test]
    fn reshape_keeps_elements_or_refuses() -> Result<(), ShapeError> {
        let wide = Layout::dense(&[5, 12])?;
        let (part, start) = wide.narrow(1, 4, 6)?;
        assert_eq!(start, 4);
        let heads = part.reshape(&[5, 2, 3])?;
        assert_eq!(offsets(&heads), offsets(&part));
        assert_eq!(offsets(&heads.reshape(&[5, 6])?), offsets(&part));
        assert_eq!(offsets(&heads.reshape(&[1, 5, 3, 2])?), offsets(&part));
        assert!(part.reshape(&[30]).is_err());
        assert!(part.reshape(&[5, 5]).is_err());
        assert!(Layout::dense(&[usize::MAX, 2]).is_err());
        assert!(wide.narrow(0, 3, 3).is_err());
        Ok(())
    }

    #[test]
    fn overlap_is_found() -> Result<(), ShapeError> {
        assert!(Layout::strided(&[4, 4], &[2, 1])?.overlaps_itself());
        assert!(Layout::strided(&[4, 4], &[0, 1])?.overlaps_itself());
        assert!(!Layout::strided(&[4, 4], &[7, 1])?.overlaps_itself());
        assert_eq!(Layout::strided(&[4, 4], &[7, 1])?.extent(), 25);
        Ok(())
    }
}
