//! The model that ships inside the binary: a small SmolVLM trained on drawn scenes, see `models/demo/README.md`.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Aligned;

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

/// Its files.
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
