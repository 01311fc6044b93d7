//! Lists of shapes: which ops at which specs a benchmark runs.

use ocelli_kernels::Backend;
use serde::Deserialize;

/// A list of shapes, usually those of one model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Shapes {
    /// The model, or what the shapes have in common.
    pub model: String,
    /// The one backend that runs them; without it every backend does.
    #[serde(default)]
    pub backend: Option<Backend>,
    /// The shapes, in the order of their use.
    #[serde(rename = "shape")]
    pub shapes: Vec<Shape>,
}

/// One op at one spec.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Where it occurs, for people.
    pub what: String,
    /// Name of the op.
    pub op: String,
    /// Its spec in the text form: `m=1 n=3072 k=576 w=bf16`.
    pub spec: String,
}

/// Files that are part of the binary.
const EMBEDDED: &[(&str, &str)] = &[
    ("nvidia", include_str!("../shapes/nvidia.toml")),
    ("smolvlm-256m", include_str!("../shapes/smolvlm-256m.toml")),
    ("hybrid", include_str!("../shapes/hybrid.toml")),
    ("square", include_str!("../shapes/square.toml")),
];

impl Shapes {
    /// Reads a list. The error tells what is wrong and where.
    pub fn parse(text: &str) -> Result<Shapes, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The lists that are part of the binary.
    pub fn embedded() -> Result<Vec<Shapes>, String> {
        EMBEDDED.iter().map(|(name, text)| Shapes::parse(text).map_err(|e| format!("{name}: {e}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocelli_kernels::OP_NAMES;
    use ocelli_kernels::ops::MatmulSpec;
    use ocelli_kernels::spec::text;

    #[test]
    fn embedded_lists_name_ops_that_exist() {
        let all = Shapes::embedded().unwrap();
        assert!(all.len() == EMBEDDED.len() && all.iter().all(|list| !list.shapes.is_empty()));
        for shape in all.iter().flat_map(|list| &list.shapes) {
            assert!(OP_NAMES.contains(&shape.op.as_str()), "{shape:?}");
            if shape.op == "matmul" {
                let spec = text::read::<MatmulSpec>(&shape.spec).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
                assert!(spec.m > 0 && spec.n > 0 && spec.k > 0, "{shape:?}");
            }
        }
    }

    #[test]
    fn bad_lists_are_refused() {
        assert!(Shapes::parse("model = 1").is_err());
        let text = "model = \"m\"\n[[shape]]\nwhat = \"w\"\nop = \"matmul\"\nspec = \"m=1\"\nspecc = \"\"";
        assert!(Shapes::parse(text).unwrap_err().contains("specc"));
    }
}
