//! Frequencies of rotary embeddings, as transformers' `ROPE_INIT_FUNCTIONS` compute them.

use ocelli_engine::{Ctx, Error, Result, Tensor};
use serde::Deserialize;

/// `rope_parameters` of transformers 5, or `rope_scaling` with `rope_theta` of version 4.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// `default`, `linear` or `llama3`.
    #[serde(alias = "type")]
    pub rope_type: Option<String>,
    /// Factor by which positions are stretched.
    pub factor: Option<f64>,
    /// llama3: wavelengths above `original / low_freq_factor` are stretched in full.
    pub low_freq_factor: Option<f64>,
    /// llama3: wavelengths below `original / high_freq_factor` are left alone.
    pub high_freq_factor: Option<f64>,
    /// llama3: positions that the model was first trained for.
    pub original_max_position_embeddings: Option<f64>,
}

/// Frequencies on the device.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// f32 `[head_dim / 2]`.
    pub inv_freq: Tensor,
    /// Factor of sines and cosines.
    pub attention_scaling: f32,
}

impl RopeConfig {
    /// Inverse frequencies of each pair, in f32 as transformers computes them. Errors for a kind that is not known.
    pub fn inv_freq(&self, head_dim: usize, theta: f64) -> Result<Vec<f32>, String> {
        let theta = self.rope_theta.unwrap_or(theta) as f32;
        let plain = (0..head_dim / 2).map(|pair| 1.0 / theta.powf((2 * pair) as f32 / head_dim as f32));
        let need = |value: Option<f64>, name: &str| {
            value
                .filter(|v| *v > 0.0)
                .map(|v| v as f32)
                .ok_or_else(|| format!("rope: expected a positive `{name}`"))
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(plain.collect()),
            Some("linear") => {
                let factor = need(self.factor, "factor")?;
                Ok(plain.map(|freq| freq / factor).collect())
            }
            Some("llama3") => {
                let factor = need(self.factor, "factor")?;
                let low = need(self.low_freq_factor, "low_freq_factor")?;
                let high = need(self.high_freq_factor, "high_freq_factor")?;
                let original =
                    need(self.original_max_position_embeddings, "original_max_position_embeddings")?;
                if high <= low {
                    return Err(format!(
                        "rope: expected high_freq_factor above low_freq_factor {low}, found {high}"
                    ));
                }
                Ok(plain
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
                    .collect())
            }
            Some(other) => Err(format!("rope type `{other}`: expected default, linear or llama3")),
        }
    }

    /// The frequencies on the device; `path` names the configuration in errors.
    pub fn table(&self, cx: &mut Ctx, path: &str, head_dim: usize, theta: f64) -> Result<RopeTable> {
        let values = self
            .inv_freq(head_dim, theta)
            .map_err(|reason| Error::Config { path: path.to_owned(), reason })?;
        let inv_freq = cx.alloc_owned(&[values.len()], ocelli_kernels::DType::F32)?;
        let view = cx.view(&inv_freq)?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        cx.stream().write(&view, &bytes)?;
        Ok(RopeTable { inv_freq, attention_scaling: 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_stretches_long_waves_only() {
        let config: RopeConfig = serde_json::from_str(
            r#"{"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64, "rope_theta": 500000.0, "rope_type": "llama3"}"#,
        )
        .unwrap();
        let plain = RopeConfig::default().inv_freq(16, 500_000.0).unwrap();
        let scaled = config.inv_freq(16, 1.0).unwrap();
        assert_eq!(plain[0], scaled[0]);
        assert!(scaled[1] < plain[1] && scaled[1] > plain[1] / 8.0, "between: {} of {}", scaled[1], plain[1]);
        assert_eq!(plain[7] / 8.0, scaled[7]);
        let unknown = RopeConfig { rope_type: Some("yarn".into()), ..Default::default() };
        assert!(unknown.inv_freq(16, 1e4).unwrap_err().contains("yarn"));
    }
}
