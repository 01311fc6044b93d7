//! The model that ships inside the binary: a small SmolVLM trained on drawn scenes, see `models/demo/README.md`.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Aligned;

static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/model/model.safetensors"));

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
