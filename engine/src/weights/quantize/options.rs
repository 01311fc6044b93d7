//! What matrices are to a model, and what becomes of them.

use ocelli_kernels::{Code, DType, Format, Grouped, Zero};
use serde::{Deserialize, Serialize};

use super::{Layout, MAX_SHARD, QuantizeError};

/// What a matrix is to its model. A model's family knows which is which; see [`quantize`](super::quantize).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A linear layer of the text decoder.
    Decoder,
    /// A linear layer of a dual encoder's text tower.
    Text,
    /// The output layer.
    Head,
    /// The table of token embeddings.
    Embedding,
    /// A linear layer of the vision tower.
    Tower,
    /// A linear layer between tower and decoder.
    Connector,
    /// What draws pictures.
    Painter,
}

/// What weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizeScheme {
    /// Integers of 4 bits.
    Int4,
    /// Integers of 8 bits.
    Int8,
    /// 8-bit floats (E4M3) with a scale a row; in MLX's layout in groups of 32, with powers of two.
    Fp8,
    /// NF4 in groups of 64.
    Nf4,
    /// 4-bit floats (E2M1) in groups of 32, with powers of two.
    Mxfp4,
    /// 4-bit floats (E2M1) in groups of 16, with scales of 8 bits.
    Nvfp4,
}

impl QuantizeScheme {
    /// Spelling on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Nf4 => "nf4",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
        }
    }

    pub(super) const fn is_int(self) -> bool {
        matches!(self, Self::Int4 | Self::Int8)
    }
}

/// How to quantize.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// What weights are rounded to.
    pub scheme: QuantizeScheme,
    /// Whose layout the copy has.
    pub layout: Layout,
    /// Of integers, weights that share a scale: 32, 64 or 128, or 0 for a whole row. A matrix whose rows it does not divide gets the
    /// next smaller that does, or one scale a row.
    pub group: u32,
    /// Whether groups of integers have zero points.
    pub zero_points: bool,
    /// Type of the scales of integers and of rows; `None` is the type of each matrix as it is stored.
    pub scales: Option<DType>,
    /// Whether head and token table become 8-bit too.
    pub head: bool,
    /// Whether the tower's linear layers are taken too.
    pub tower: bool,
    /// Whether the connector's linear layers are taken too.
    pub connector: bool,
    /// Largest file, in bytes.
    pub max_shard: u64,
    /// Whether to replace a model that is already at the destination.
    pub force: bool,
    /// How weights become codes, where the inputs of a matrix are known.
    pub rounding: Rounding,
    /// Whether channels are scaled by what is known of inputs, as far as what produces them can take the scales.
    pub scaling: Scaling,
    /// Whether the range of a group may be clipped, where the inputs of its matrix are known.
    pub clip: bool,
    /// Most bytes of what is kept of inputs at a time; more are seen in several runs over the calibration data.
    pub memory: u64,
}

/// How weights become codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Each the nearest.
    #[default]
    Nearest,
    /// Column by column, so that each makes up for those before it as far as inputs let it (GPTQ, Frantar et al. 2023).
    Gptq,
}

impl Rounding {
    /// Spelling on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Gptq => "gptq",
        }
    }
}

/// How the channels of inputs are scaled before weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scaling {
    /// Not at all.
    #[default]
    None,
    /// By a power of their mean magnitude, that with the least error of outputs (AWQ, Lin et al. 2024).
    Awq,
}

impl QuantizeOptions {
    /// The decoder's linear layers in symmetric groups of 32; with 4 bits, head and token table in 8 bits too, as they
    /// would outweigh all layers of a small model.
    #[must_use]
    pub const fn new(scheme: QuantizeScheme) -> Self {
        Self {
            scheme,
            layout: Layout::CompressedTensors,
            group: 32,
            zero_points: false,
            scales: None,
            head: matches!(scheme, QuantizeScheme::Int4),
            tower: false,
            connector: false,
            max_shard: MAX_SHARD,
            force: false,
            rounding: Rounding::Nearest,
            scaling: Scaling::None,
            clip: false,
            memory: 2 << 30,
        }
    }

    /// Whether anything asks for what the inputs of matrices are.
    #[must_use]
    pub fn needs_inputs(&self) -> bool {
        self.rounding == Rounding::Gptq || self.scaling == Scaling::Awq || self.clip
    }

    pub(super) fn check(&self) -> Result<(), QuantizeError> {
        let fail = |text: String| Err(QuantizeError::Options(text));
        if !matches!(self.group, 0 | 32 | 64 | 128) {
            return fail(format!("group: expected 32, 64, 128 or 0 for whole rows, found {}", self.group));
        }
        if let Some(scales) = self.scales.filter(|dtype| !dtype.is_float()) {
            return fail(format!("scales: expected f32, bf16 or f16, found {scales}"));
        }
        let name = self.scheme.name();
        match (self.layout, self.scheme) {
            (Layout::CompressedTensors, QuantizeScheme::Nf4) => {
                return fail(
                    "nf4: not a format of compressed-tensors; the layout of bitsandbytes has it".into(),
                );
            }
            (Layout::Bitsandbytes, scheme) if scheme != QuantizeScheme::Nf4 => {
                return fail(format!("{name}: not a format of bitsandbytes' layout; expected nf4"));
            }
            (Layout::Mlx, QuantizeScheme::Nf4) => {
                return fail("nf4: not a format of MLX's layout; that of bitsandbytes has it".into());
            }
            _ => {}
        }
        if self.layout == Layout::Mlx && self.scheme.is_int() && self.group == 0 {
            return fail("group: MLX has groups of 32, 64 and 128, found 0 for whole rows".into());
        }
        if self.zero_points && !(self.scheme.is_int() && self.layout == Layout::CompressedTensors) {
            return fail(format!(
                "zero points: of integers in compressed-tensors' layout alone, found {name}"
            ));
        }
        if self.head && !self.scheme.is_int() {
            return fail(format!(
                "head and token table become 8-bit integers beside integers alone, found {name}"
            ));
        }
        Ok(())
    }

    /// Format of a matrix of this role with rows of `k` weights stored as `dtype`; `None` keeps it as it is.
    pub(super) fn format(&self, role: Role, k: usize, dtype: DType) -> Option<Format> {
        let scheme = match role {
            Role::Decoder | Role::Text => self.scheme,
            Role::Tower => self.tower.then_some(self.scheme)?,
            Role::Connector => self.connector.then_some(self.scheme)?,
            Role::Head | Role::Embedding => self.head.then_some(QuantizeScheme::Int8)?,
            Role::Painter => return None,
        };
        let scale = self.scales.unwrap_or(dtype);
        let mlx = self.layout == Layout::Mlx;
        let of = |code, group: u32, scale| {
            let each = if group == 0 { 32 / Code::bits(code) } else { group as usize };
            k.is_multiple_of(each).then_some(Format::Grouped(Grouped {
                code,
                group,
                zero: Zero::None,
                scale,
            }))
        };
        match scheme {
            QuantizeScheme::Int4 | QuantizeScheme::Int8 => {
                let code = if scheme == QuantizeScheme::Int4 { Code::Int4 } else { Code::Int8 };
                let fits = |group: &u32| *group <= self.group && k.is_multiple_of(*group as usize);
                let group = [128, 64, 32].into_iter().find(fits);
                let zero = match (mlx, self.zero_points) {
                    (true, _) => Zero::Offset,
                    (false, true) => Zero::Codes,
                    (false, false) => Zero::None,
                };
                // MLX has no scale for a whole row.
                let group = if mlx { group? } else { group.unwrap_or(0) };
                Some(Format::Grouped(Grouped { code, group, zero, scale }))
            }
            QuantizeScheme::Fp8 if mlx => of(Code::Fp8, 32, DType::E8M0),
            QuantizeScheme::Fp8 => of(Code::Fp8, 0, scale),
            QuantizeScheme::Nf4 => of(Code::Nf4, 64, DType::F32),
            QuantizeScheme::Mxfp4 => of(Code::Fp4, 32, DType::E8M0),
            QuantizeScheme::Nvfp4 => of(Code::Fp4, 16, DType::E4M3),
        }
    }
}
