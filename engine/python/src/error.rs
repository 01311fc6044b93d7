//! Errors as exceptions, with the texts that the command has.

use ocelli_engine::Error;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;

pyo3::create_exception!(
    ocelli,
    OcelliError,
    PyException,
    "What went wrong in the engine; `hint` says what can be done about it, or is None."
);

/// The exception of an error: `ValueError` of parameters out of range, else `OcelliError`.
pub fn raised(error: &Error) -> PyErr {
    match error {
        Error::Param(_) => value(error.to_string()),
        error => engine(error.to_string(), error.hint()),
    }
}

/// A failure of the engine.
pub fn engine(text: String, hint: Option<String>) -> PyErr {
    let error = OcelliError::new_err(text);
    Python::attach(|py| {
        // An exception that has no hint is one all the same.
        let _ = error.value(py).setattr("hint", hint);
    });
    error
}

/// A wrong argument.
pub fn value(text: String) -> PyErr {
    PyValueError::new_err(text)
}
