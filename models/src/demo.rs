//! The models that ship inside the binary, of drawn scenes: a small SmolVLM that answers, see `models/demo/README.md`, a dual encoder
//! of pictures and texts in SigLIP's layout, see `models/dual/README.md`, and a model in Janus's layout that draws, see
//! `models/painter/README.md`.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Aligned;

static PAINTER_WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../painter/model/model.safetensors"));
static VECTOR_WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../dual/model/model.safetensors"));
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/model/model.safetensors"));

/// Pictures of its kind, each with a question.
pub const EXAMPLES: [(&str, &[u8], &str); 6] = [
    ("01.png", include_bytes!("../demo/examples/01.png"), "How many objects are there?"),
    ("02.png", include_bytes!("../demo/examples/02.png"), "Describe the picture."),
    ("03.png", include_bytes!("../demo/examples/03.png"), "How many objects are there?"),
    ("04.png", include_bytes!("../demo/examples/04.png"), "Describe the picture."),
    ("05.png", include_bytes!("../demo/examples/05.png"), "How many objects are there?"),
    ("06.png", include_bytes!("../demo/examples/06.png"), "Describe the picture."),
];

/// Files of the model that answers.
pub const FILES: ModelFiles = ModelFiles::Embedded {
    label: "demo",
    files: &[
        ("config.json", include_bytes!("../demo/model/config.json")),
        ("generation_config.json", include_bytes!("../demo/model/generation_config.json")),
        ("processor_config.json", include_bytes!("../demo/model/processor_config.json")),
        ("tokenizer.json", include_bytes!("../demo/model/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../demo/model/tokenizer_config.json")),
        ("chat_template.jinja", include_bytes!("../demo/model/chat_template.jinja")),
        ("model.safetensors", &WEIGHTS.0),
    ],
};

/// Files of the dual encoder.
pub const VECTORS: ModelFiles = ModelFiles::Embedded {
    label: "demo vectors",
    files: &[
        ("config.json", include_bytes!("../dual/model/config.json")),
        ("processor_config.json", include_bytes!("../dual/model/processor_config.json")),
        ("tokenizer.json", include_bytes!("../dual/model/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../dual/model/tokenizer_config.json")),
        ("model.safetensors", &VECTOR_WEIGHTS.0),
    ],
};

/// Files of the model that draws.
pub const PAINTER: ModelFiles = ModelFiles::Embedded {
    label: "demo painter",
    files: &[
        ("config.json", include_bytes!("../painter/model/config.json")),
        ("generation_config.json", include_bytes!("../painter/model/generation_config.json")),
        ("processor_config.json", include_bytes!("../painter/model/processor_config.json")),
        ("tokenizer.json", include_bytes!("../painter/model/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../painter/model/tokenizer_config.json")),
        ("chat_template.jinja", include_bytes!("../painter/model/chat_template.jinja")),
        ("model.safetensors", &PAINTER_WEIGHTS.0),
    ],
};
