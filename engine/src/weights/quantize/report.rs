//! What a copy is off by, module by module.

use ocelli_kernels::Format;
use serde::{Deserialize, Serialize};

use super::Rounding;

/// [`ModuleReport`] as it is written down for a later run; errors are kept as the bits of an f64, which JSON would round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub module: String,
    rounding: Rounding,
    scaling: Option<f32>,
    weight_error: u64,
    output_error: Option<u64>,
}

/// How a matrix was rounded, and what that costs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleReport {
    /// Its module.
    pub module: String,
    /// Its format.
    pub format: Format,
    /// How its weights became codes.
    pub rounding: Rounding,
    /// The power of mean magnitudes that its columns were scaled by, if they were.
    pub scaling: Option<f32>,
    /// `|W - Q| / |W|` of the weights and what they became, scales taken out.
    pub weight_error: f64,
    /// `|(W - Q) X| / |W X|` of its outputs for the inputs of the calibration data, where those are known.
    pub output_error: Option<f64>,
}

impl Measured {
    /// Of a module whose weights and outputs are off by so much.
    pub fn new(
        module: &str,
        rounding: Rounding,
        scaling: Option<f32>,
        weight_error: f64,
        output_error: Option<f64>,
    ) -> Self {
        let (weight_error, output_error) = (weight_error.to_bits(), output_error.map(f64::to_bits));
        Self { module: module.to_owned(), rounding, scaling, weight_error, output_error }
    }

    pub fn with(self, format: Format) -> ModuleReport {
        let Self { module, rounding, scaling, weight_error, output_error } = self;
        let (weight_error, output_error) = (f64::from_bits(weight_error), output_error.map(f64::from_bits));
        ModuleReport { module, format, rounding, scaling, weight_error, output_error }
    }
}

/// The root of a quotient of squares; nothing is off by nothing.
pub(super) fn relative([whole, off]: [f64; 2]) -> f64 {
    if off <= 0.0 { 0.0 } else { (off / whole.max(f64::MIN_POSITIVE)).sqrt() }
}
