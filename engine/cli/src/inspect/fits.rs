//! Whether a model fits the memory of this machine.

use ocelli_engine::weights::free_memory;
use ocelli_kernels::Backend;
use serde::Serialize;

use crate::units::bytes;

/// What a request needs of the memory that there is.
#[derive(Debug, PartialEq, Serialize)]
pub struct Fits {
    /// Bytes that the request needs, weights included; of the weights alone where the rest is not known.
    pub needed: u64,
    /// Bytes of memory that are free for it, where the device tells.
    pub available: Option<u64>,
    /// Whether it fits, where that is known.
    pub fits: Option<bool>,
    /// The same in words.
    pub why: String,
}

impl Fits {
    /// For a backend: the host's memory with the CPU; other devices do not tell theirs.
    pub fn of(needed: u64, backend: Backend) -> Self {
        match backend {
            Backend::Cpu => Self::within(needed, free_memory()),
            _ => Self::within(needed, None),
        }
    }

    fn within(needed: u64, available: Option<u64>) -> Self {
        let Some(there) = available else {
            let why =
                format!("not known: {} are needed, and the device does not tell what it has", bytes(needed));
            return Self { needed, available, fits: None, why };
        };
        let fits = needed <= there;
        let why = match fits {
            true => format!("yes: {} of {} of memory that are free", bytes(needed), bytes(there)),
            false => format!(
                "no: {} are needed, {} of memory are free; what does not fit would be read from the disk again and again",
                bytes(needed),
                bytes(there)
            ),
        };
        Self { needed, available, fits: Some(fits), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        let of = |needed, available| Fits::within(needed, available);
        assert!(of(5, Some(5)).fits == Some(true) && of(5, Some(5)).why.starts_with("yes"));
        assert!(of(6, Some(5)).fits == Some(false) && of(6, Some(5)).why.starts_with("no: "));
        assert!(of(6, None).fits.is_none() && of(6, None).why.starts_with("not known"));
    }
}
