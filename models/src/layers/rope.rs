//! Frequencies of rotary embeddings, as transformers' `ROPE_INIT_FUNCTIONS` compute them.

use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::DType;

use crate::fields::Fields;

/// Which rotation, with what it needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeKind {
    /// Frequencies as they are.
    #[default]
    Default,
    /// Nothing is turned, wherever it is.
    Still,
    /// As the default for all pairs of a head, of which [`RopeConfig::part`] are turned, the first ones, and the others stay.
    Proportional,
    /// Positions stretched by a factor.
    Linear(f32),
    /// Long waves stretched by a factor, short ones left alone.
    Llama3 {
        /// The factor.
        factor: f32,
        /// Wavelengths above `original / low` are stretched in full.
        low: f32,
        /// Wavelengths below `original / high` are left alone.
        high: f32,
        /// Positions that the model was first trained for.
        original: f32,
    },
}

/// `rope_parameters` of transformers 5, or `rope_scaling` with `rope_theta` of version 4.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Which rotation.
    pub kind: RopeKind,
    /// Pairs that each axis of positions turns, one axis after the other; empty: axis 0 turns all.
    pub sections: Vec<usize>,
    /// Whether the axes take turns, pair by pair, for as many rounds as they have pairs; what is left over is axis 0's.
    pub interleaved: bool,
    /// Part of a head that is turned, from its first elements on; `None`: all of it.
    pub part: Option<f64>,
}

impl RopeConfig {
    /// Reads the rotation of `config`; `theta` is the base where nothing states one.
    pub fn read(config: &Fields<'_>, theta: f64) -> Result<Self> {
        let theta = config.or("rope_theta", theta)?;
        let new = config.has("rope_parameters");
        config.inert(&["rope_scaling", "rope_parameters"]);
        Self::of(&config.at(if new { "rope_parameters" } else { "rope_scaling" }), theta)
    }

    /// Reads `rope_parameters` or `rope_scaling`.
    pub fn of(fields: &Fields<'_>, theta: f64) -> Result<Self> {
        let theta = fields.or("rope_theta", theta)?;
        // Both spellings are written side by side.
        let kind: Option<String> = fields.any(&["rope_type", "type"])?;
        let positive = |key: &str| {
            let value: Option<f32> = fields.get(key)?;
            value.filter(|v| *v > 0.0).ok_or_else(|| fields.bad(key, "rope: expected a positive number"))
        };
        let kind = match kind.as_deref() {
            None | Some("default" | "mrope") => RopeKind::Default,
            Some("proportional") => {
                fields.only("factor", 1.0)?;
                RopeKind::Proportional
            }
            Some("linear") => RopeKind::Linear(positive("factor")?),
            Some("llama3") => {
                let (factor, low, high) =
                    (positive("factor")?, positive("low_freq_factor")?, positive("high_freq_factor")?);
                let original = positive("original_max_position_embeddings")?;
                if high <= low {
                    return Err(fields.bad(
                        "high_freq_factor",
                        format!("rope: expected more than low_freq_factor {low}, found {high}"),
                    ));
                }
                RopeKind::Llama3 { factor, low, high, original }
            }
            Some(other) => {
                let what = format!("rope type `{other}`: expected default, linear, llama3 or proportional");
                return Err(fields.bad("rope_type", what));
            }
        };
        let part: Option<f64> = fields.get("partial_rotary_factor")?;
        if let Some(part) = part.filter(|part| !(*part > 0.0 && *part <= 1.0)) {
            let what = format!("expected more than 0, at most 1, found {part}");
            return Err(fields.bad("partial_rotary_factor", what));
        }
        let interleaved = fields.or("mrope_interleaved", false)?;
        Ok(Self { theta, kind, sections: fields.or("mrope_section", Vec::new())?, interleaved, part })
    }

    /// Inverse frequencies of each of `pairs` pairs of a head, in f32 as transformers computes them.
    #[must_use]
    pub fn inv_freq(&self, pairs: usize) -> Vec<f32> {
        let theta = self.theta as f32;
        let plain = (0..pairs).map(|pair| 1.0 / theta.powf((2 * pair) as f32 / (2 * pairs) as f32));
        match self.kind {
            RopeKind::Default => plain.collect(),
            RopeKind::Still => vec![0.0; pairs],
            RopeKind::Proportional => {
                let turned = self.turned(2 * pairs);
                plain.enumerate().map(|(pair, freq)| if pair < turned { freq } else { 0.0 }).collect()
            }
            RopeKind::Linear(factor) => plain.map(|freq| freq / factor).collect(),
            RopeKind::Llama3 { factor, low, high, original } => plain
                .map(|freq| {
                    let wavelength = 2.0 * std::f32::consts::PI / freq;
                    if wavelength > original / low {
                        return freq / factor;
                    }
                    if wavelength < original / high {
                        return freq;
                    }
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * freq / factor + smooth * freq
                })
                .collect(),
        }
    }

    /// Pairs of a head of `head_dim` that are turned.
    fn turned(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.part.unwrap_or(1.0)) as usize / 2
    }

    /// The axis of positions that turns each pair; empty: axis 0 turns all.
    fn pair_axes(&self) -> Vec<i32> {
        if self.interleaved {
            let count = self.sections.iter().fold(0, |sum: usize, &pairs| sum.saturating_add(pairs));
            let axes = self.sections.len().max(1);
            let turn = |pair: usize| match self.sections.get(pair % axes) {
                Some(pairs) if pair / axes < *pairs => pair % axes,
                _ => 0,
            };
            return (0..count).map(|pair| turn(pair) as i32).collect();
        }
        let sections = self.sections.iter().enumerate();
        sections.flat_map(|(axis, &n)| std::iter::repeat_n(axis as i32, n)).collect()
    }

    /// The frequencies on the device for heads of `head_dim`; `path` names the configuration in errors.
    pub fn table(&self, cx: &mut Ctx, path: &str, head_dim: usize) -> Result<RopeTable> {
        let pairs = if self.kind == RopeKind::Proportional { head_dim / 2 } else { self.turned(head_dim) };
        let axes = self.pair_axes();
        if !axes.is_empty() && (axes.len() != pairs || self.sections.len() != 3) {
            let reason =
                format!("mrope_section: expected 3 numbers of sum {pairs}, found {:?}", self.sections);
            return Err(Error::Config { path: path.to_owned(), reason });
        }
        RopeTable::new(cx, &self.inv_freq(pairs), &axes)
    }
}

/// Frequencies on the device.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// f32 `[pairs]`.
    pub inv_freq: Tensor,
    /// i32 `[pairs]`: the axis of positions that turns each pair, if there are several.
    pub pair_axis: Option<Tensor>,
    /// Factor of sines and cosines.
    pub attention_scaling: f32,
}

impl RopeTable {
    /// A table of `inv_freq`; `axes` is empty, or the axis of each pair.
    pub fn new(cx: &mut Ctx, inv_freq: &[f32], axes: &[i32]) -> Result<Self> {
        let mut place = |bytes: &[u8], len: usize, dtype: DType| {
            let tensor = cx.alloc_owned(&[len], dtype)?;
            cx.stream().write(tensor.view(), bytes)?;
            Ok::<_, Error>(tensor)
        };
        let bytes: Vec<u8> = inv_freq.iter().flat_map(|v| v.to_le_bytes()).collect();
        let table = place(&bytes, inv_freq.len(), DType::F32)?;
        let bytes: Vec<u8> = axes.iter().flat_map(|v| v.to_le_bytes()).collect();
        let pair_axis = if axes.is_empty() { None } else { Some(place(&bytes, axes.len(), DType::I32)?) };
        Ok(Self { inv_freq: table, pair_axis, attention_scaling: 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::Config;

    fn read(config: serde_json::Value) -> Result<RopeConfig> {
        RopeConfig::read(&Config::new("config.json".into(), config).root(), 10_000.0)
    }

    #[test]
    fn llama3_stretches_long_waves_only() {
        let scaled =
            read(json!({"rope_parameters": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64, "rope_theta": 500_000.0, "rope_type": "llama3"}}))
            .unwrap()
            .inv_freq(8);
        let plain = read(json!({"rope_theta": 500_000.0})).unwrap().inv_freq(8);
        assert_eq!(plain[0], scaled[0]);
        assert!(scaled[1] < plain[1] && scaled[1] > plain[1] / 8.0, "between: {} of {}", scaled[1], plain[1]);
        assert_eq!(plain[7] / 8.0, scaled[7]);
    }

    #[test]
    fn axes_one_after_the_other_or_in_turns() {
        let axes = |interleaved: bool| {
            let rope = RopeConfig { sections: vec![4, 2, 1], interleaved, ..RopeConfig::default() };
            rope.pair_axes()
        };
        assert_eq!(axes(false), [0, 0, 0, 0, 1, 1, 2]);
        assert_eq!(axes(true), [0, 1, 2, 0, 1, 0, 0]);
    }

    #[test]
    fn spellings_of_the_kind() {
        let linear =
            |field: serde_json::Value| read(json!({"rope_scaling": field, "rope_theta": 5.0})).unwrap();
        let wanted = RopeConfig { theta: 5.0, kind: RopeKind::Linear(2.0), ..RopeConfig::default() };
        assert_eq!(linear(json!({"type": "linear", "factor": 2.0})), wanted);
        assert_eq!(linear(json!({"rope_type": "linear", "factor": 2})), wanted);
        assert_eq!(linear(json!({"type": "linear", "rope_type": "linear", "factor": 2.0})), wanted);
        // Version 4 copies `type` to `rope_type`, which wins.
        let both = linear(json!({"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}));
        assert_eq!((both.kind, both.sections), (RopeKind::Default, vec![2, 3, 3]));
        let error = read(json!({"rope_parameters": {"rope_type": "yarn"}})).unwrap_err().to_string();
        assert!(error.contains("config.json: rope_parameters.rope_type: rope type `yarn`"), "{error}");
        let error = read(json!({"rope_scaling": {"type": "linear"}})).unwrap_err().to_string();
        assert!(error.contains("rope_scaling.factor: rope: expected a positive number"), "{error}");
    }
}
