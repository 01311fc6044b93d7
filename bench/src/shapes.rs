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
    /// When they are measured.
    #[serde(default)]
    pub set: Set,
    /// The shapes, in the order of their use.
    #[serde(rename = "shape", default)]
    pub shapes: Vec<Shape>,
    /// Decoders, whose products follow the shapes.
    #[serde(rename = "decoder", default)]
    decoders: Vec<DecoderSizes>,
    /// Rows of x in these products.
    #[serde(default = "step_rows")]
    rows: Vec<usize>,
    /// Storage formats in them, each with the arithmetic that its weights allow.
    #[serde(default)]
    formats: Vec<String>,
}

/// Shapes that are measured together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// Unless another is asked for.
    #[default]
    Usual,
    /// Decode steps of published models.
    Decoders,
    /// Products in the formats of published quantized checkpoints.
    Published,
}

fn step_rows() -> Vec<usize> {
    vec![1, 8]
}

/// Sizes of a decoder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecoderSizes {
    name: String,
    d: usize,
    mlp: usize,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    vocab: usize,
}

impl DecoderSizes {
    /// Products of a layer and of the head.
    fn shapes(&self, rows: &[usize], formats: &[String]) -> Vec<Shape> {
        let Self { name, d, mlp, heads, heads_kv, head_dim, vocab } = self;
        let qkv = (heads + 2 * heads_kv) * head_dim;
        let products = [
            ("qkv", format!("n={qkv} k={d}"), " parts=3"),
            ("out", format!("n={d} k={}", heads * head_dim), " residual=true"),
            ("gate and up", format!("n={} k={d}", 2 * mlp), " parts=2 act=silu gated=true"),
            ("down", format!("n={d} k={mlp}"), " residual=true"),
            ("head", format!("n={vocab} k={d}"), ""),
        ];
        let mut shapes = Vec::new();
        for rows in rows {
            for format in formats {
                shapes.extend(products.iter().map(|(part, sizes, more)| Shape {
                    what: format!("{name} {part}"),
                    op: "matmul".into(),
                    spec: format!("m={rows} {sizes} {format}{more}"),
                }));
            }
        }
        shapes
    }
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
    ("qwen3-vl-30b-a3b", include_str!("../shapes/qwen3-vl-30b-a3b.toml")),
    ("square", include_str!("../shapes/square.toml")),
    ("decoders", include_str!("../shapes/decoders.toml")),
    ("published", include_str!("../shapes/published.toml")),
];

impl Shapes {
    /// Reads a list. The error tells what is wrong and where.
    pub fn parse(text: &str) -> Result<Shapes, String> {
        let mut list: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |at| 1 + text[..at.start].matches('\n').count());
            format!("line {line}: {}", error.message())
        })?;
        let products = list.decoders.iter().flat_map(|sizes| sizes.shapes(&list.rows, &list.formats));
        list.shapes.extend(products);
        Ok(list)
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
