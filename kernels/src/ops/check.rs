//! Checks that ops share. Each error names the operand, what was expected and what was found.

use crate::buffer::View;
use crate::spec::{DType, ShapeError};

/// `view` has this shape.
pub fn shape(name: &str, view: &View, expected: &[usize]) -> Result<(), ShapeError> {
    if view.shape() == expected {
        return Ok(());
    }
    let axis = view.shape().iter().zip(expected).position(|(found, want)| found != want);
    match axis {
        Some(axis) if view.shape().len() == expected.len() => Err(ShapeError::mismatch(
            &format!("{name} axis {axis}"),
            format!("{} of {expected:?}", expected[axis]),
            format!("{} of {:?}", view.size(axis), view.shape()),
        )),
        _ => Err(ShapeError::mismatch(name, format!("{expected:?}"), format!("{:?}", view.shape()))),
    }
}

/// `view` has this many axes.
pub fn rank(name: &str, view: &View, expected: usize) -> Result<(), ShapeError> {
    if view.layout().rank() == expected {
        return Ok(());
    }
    Err(ShapeError::mismatch(name, format!("{expected} axes"), format!("{:?}", view.shape())))
}

/// `view` holds floats and its last axis is contiguous.
pub fn float(name: &str, view: &View) -> Result<(), ShapeError> {
    if !view.dtype().is_float() {
        return Err(ShapeError::mismatch(name, "f32, bf16 or f16", view.dtype()));
    }
    contiguous(name, view)
}

/// `view` holds elements of this type and its last axis is contiguous.
pub fn dtype(name: &str, view: &View, expected: DType) -> Result<(), ShapeError> {
    if view.dtype() != expected {
        return Err(ShapeError::mismatch(name, expected, view.dtype()));
    }
    contiguous(name, view)
}

/// The last axis of `view` is contiguous.
pub fn contiguous(name: &str, view: &View) -> Result<(), ShapeError> {
    if view.layout().rows_contiguous() {
        return Ok(());
    }
    Err(ShapeError::mismatch(name, "a contiguous last axis", format!("{:?}", view.layout())))
}

/// `view` has no gaps.
pub fn dense(name: &str, view: &View) -> Result<(), ShapeError> {
    if view.layout().is_dense() {
        return Ok(());
    }
    Err(ShapeError::mismatch(name, "elements without gaps", format!("{:?}", view.layout())))
}

/// An output does not address an element twice and shares no byte with the inputs.
pub fn output<'a>(
    name: &str,
    out: &View,
    inputs: impl IntoIterator<Item = (&'a str, &'a View)>,
) -> Result<(), ShapeError> {
    if out.layout().overlaps_itself() {
        return Err(ShapeError::mismatch(name, "each element once", format!("{:?}", out.layout())));
    }
    for (input, view) in inputs {
        if out.overlaps(view) {
            return Err(ShapeError::new(format!("{name}: shares memory with {input}")));
        }
    }
    Ok(())
}
