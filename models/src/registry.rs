//! The list of families, and how a checkpoint finds its own.

use std::collections::BTreeMap;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::vlm::PartInfo;
use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_engine::{Ctx, Error, Result, Vlm};
use ocelli_kernels::{View, Weights};
use serde::Deserialize;

use crate::smolvlm;

/// A model family as a row of data.
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// `model_type` of the configurations that it runs.
    pub model_types: &'static [&'static str],
    /// Loads a checkpoint.
    pub load: fn(&ModelFiles, &Checkpoint, &mut Ctx) -> Result<Box<dyn Vlm>>,
    /// What the module of a name is to the model, where it is a matrix that can be quantized.
    pub role: fn(&str) -> Option<Role>,
}

/// Every family.
pub const FAMILIES: &[Family] = &[smolvlm::FAMILY];

/// The family of a model. Errors name the `model_type` found and those that exist.
pub fn family(files: &ModelFiles) -> Result<&'static Family> {
    #[derive(Deserialize)]
    struct Config {
        model_type: Option<String>,
    }
    let config: Config = files.require_json("config.json")?;
    let found = config.model_type.unwrap_or_default();
    FAMILIES.iter().find(|family| family.model_types.contains(&found.as_str())).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        Error::Config {
            path: files.describe("config.json"),
            reason: format!("model_type: expected one of {}, found `{found}`", known.join(", ")),
        }
    })
}

/// Opens the weights of a model and loads its family.
pub fn load(files: &ModelFiles, cx: &mut Ctx) -> Result<Box<dyn Vlm>> {
    let family = family(files)?;
    let checkpoint = Checkpoint::open(files)?;
    (family.load)(files, &checkpoint, cx)
}

/// Parameters, bytes and formats of a part with these matrices and vectors.
pub(crate) fn describe_part<'a>(
    name: &'static str,
    weights: impl IntoIterator<Item = &'a Weights>,
    views: impl IntoIterator<Item = &'a View>,
) -> PartInfo {
    let (mut parameters, mut bytes) = (0, 0);
    let mut formats: BTreeMap<String, usize> = BTreeMap::new();
    for w in weights {
        let biases: usize = w.parts().iter().filter_map(|part| part.bias.as_ref()).map(View::len).sum();
        parameters += (w.n() * w.k() + biases) as u64;
        bytes += w.bytes();
        *formats.entry(w.format().to_string()).or_default() += w.parts().len();
    }
    for view in views {
        parameters += view.len() as u64;
        bytes += view.bytes();
    }
    PartInfo { name, parameters, bytes, formats: formats.into_iter().collect() }
}
