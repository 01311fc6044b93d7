//! Storage formats of quantized weights.
//!
//! A *code* is what the bits of one weight stand for: a folder here and a line of the list below. The folder holds
//!
//! - `mod.rs`: `NAME`, `BITS` (4 or 8), `CENTRE`, `RANGE`, `HALVES`, `value`, `nearest`, and `DECODER`, the [`Decoder`] of Rust SIMD kernels;
//! - `decode.wgsl`: `code_four`, four codes of a word as floats, less their zero point;
//! - `decode.cuh`: `code_value`, one code as f32, `code_quad`, four of them, and, where 16-bit floats hold the values, `code_pairs`, eight codes as operands of
//!   tensor cores.
//!
//! [`grouped`] holds what all codes share: planes, scales and zero points; [`kmajor`] has planes of integers that lie along `n`. Kernels include a code's decoder by the name of its
//! folder; there is no kernel per code, and none asks which code it reads but through the constants above.

pub mod decoder;
pub mod grouped;
pub mod int;
pub mod kmajor;
pub mod table;

pub use self::decoder::Decoder;

/// Makes [`Code`] and [`with_decoder`] from the list.
macro_rules! codes {
    ($d:tt $($(#[$doc:meta])* $code:ident => $module:ident;)*) => {
        $(pub mod $module;)*

        /// What the codes of [`Grouped`](crate::Grouped) weights stand for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            /// Bits of a code: 4 or 8.
            #[must_use]
            pub const fn bits(self) -> usize {
                match self { $(Self::$code => $module::BITS,)* }
            }

            /// Spelling in formats.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$code => $module::NAME,)* }
            }

            /// Folder of the decoders below `quant`.
            #[must_use]
            pub const fn folder(self) -> &'static str {
                match self { $(Self::$code => stringify!($module),)* }
            }

            /// Of integers, the stored field that stands for zero where there are no zero points.
            #[must_use]
            pub const fn centre(self) -> Option<u8> {
                match self { $(Self::$code => $module::CENTRE,)* }
            }

            /// Smallest and largest value.
            #[must_use]
            pub const fn range(self) -> (f32, f32) {
                match self { $(Self::$code => $module::RANGE,)* }
            }

            /// Whether bf16 and f16 hold every value exactly.
            #[must_use]
            pub const fn halves(self) -> bool {
                match self { $(Self::$code => $module::HALVES,)* }
            }

            /// The value of a stored field; of integers that less the centre.
            #[must_use]
            pub fn value(self, field: u8) -> f32 {
                match self { $(Self::$code => $module::value(field),)* }
            }

            /// The field whose value is nearest to `x`; values beyond the range become its ends.
            #[must_use]
            pub fn nearest(self, x: f32) -> u8 {
                match self { $(Self::$code => $module::nearest(x),)* }
            }
        }

        /// Runs `$body` with `$decoder` bound to the [`Decoder`] of a code.
        macro_rules! with_decoder {
            ($d of:expr, $d decoder:ident => $d body:expr) => {
                match $d of {
                    $($crate::quant::Code::$code => {
                        let $d decoder = $crate::quant::$module::DECODER;
                        $d body
                    })*
                }
            };
        }
        pub(crate) use with_decoder;
    };
}

codes! {$
    /// Integers of -8 to 7, stored with 8 added.
    Int4 => int4;
    /// Integers of -128 to 127, stored with 128 added.
    Int8 => int8;
    /// 8-bit floats without infinities (E4M3FN), up to 448; see [`e4m3`].
    Fp8 => e4m3;
    /// 4-bit floats (E2M1), up to 6; see [`e2m1`].
    Fp4 => e2m1;
    /// The 16 values of NF4, between -1 and 1; see [`nf4`].
    Nf4 => nf4;
    /// The 16 values of FP4 as bitsandbytes has it, between -1 and 1; see [`bnb_fp4`].
    BnbFp4 => bnb_fp4;
}

/// The value of an E8M0 scale, `2^(byte - 127)`; NaN for 255.
#[must_use]
pub const fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits((byte as u32) << 23),
    }
}

/// The E8M0 scale nearest to `x` by its exponent, of magnitudes that are above zero; others become the least.
#[must_use]
pub fn to_e8m0(x: f32) -> u8 {
    if x.is_nan() { 255 } else { (x.abs().log2().round() + 127.0).clamp(0.0, 254.0) as u8 }
}

impl Code {
    /// Whether codes are integers.
    #[must_use]
    pub const fn is_int(self) -> bool {
        self.centre().is_some()
    }

    /// Integers of so many bits, if any are stored.
    #[must_use]
    pub fn int(bits: usize) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.is_int() && code.bits() == bits)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_their_own_nearest_and_lie_within_the_range() {
        for &code in Code::ALL {
            let (low, high) = code.range();
            let (mut least, mut most) = (0.0f32, 0.0f32);
            for field in 0..=u8::MAX >> (8 - code.bits()) {
                let value = code.value(field);
                // NaN codes of 8-bit floats decode as the next step would.
                if value < low || value > high {
                    assert_eq!(code, Code::Fp8, "{code} {field}: {value}");
                    continue;
                }
                assert_eq!(code.value(code.nearest(value)), value, "{code} {field}");
                (least, most) = (least.min(value), most.max(value));
            }
            assert_eq!((least, most), (low, high), "{code}");
            assert_eq!(code.value(code.nearest(1e9)), high, "{code}");
            assert_eq!(code.value(code.nearest(-1e9)), low, "{code}");
            if let Some(centre) = code.centre() {
                assert_eq!(code.value(centre), 0.0, "{code}");
            }
        }
    }

    #[test]
    fn exponents_return() {
        for byte in 0..255 {
            assert_eq!(to_e8m0(e8m0(byte)), byte);
        }
        assert!(e8m0(255).is_nan());
        assert_eq!((e8m0(127), e8m0(130), to_e8m0(0.0)), (1.0, 8.0, 0));
    }

    #[test]
    fn halves_hold_what_they_are_said_to_hold() {
        for &code in Code::ALL {
            let exact = (0..=u8::MAX >> (8 - code.bits())).all(|field| {
                let value = code.value(field);
                half::bf16::from_f32(value).to_f32() == value && half::f16::from_f32(value).to_f32() == value
            });
            assert_eq!(exact, code.halves(), "{code}");
        }
    }
}
