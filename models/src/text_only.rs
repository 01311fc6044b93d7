//! Decoders without a tower: what other families' text parts are by themselves.
//!
//! After the classes `LlamaForCausalLM`, `MistralForCausalLM` and so on of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Error, Model, Prompt, Result};
use serde_json::Value;

use crate::composed::Composed;
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "text",
    model_types: &[
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "cohere2",
        "granite",
    ],
    models: "Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3, Cohere 2, Granite",
    pictures: "none: text alone",
    file: file!(),
    processor: |files| Ok(Box::new(Processor { chats: has_template(files)? })),
    load,
    spare: &[],
};

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.unset("use_bidirectional_attention")?;
    let text = TextPlan::read(&config, FAMILY.model_types, None)?;
    let head = source.checkpoint.at("lm_head");
    let decoder = Decoder::load(cx, &source.checkpoint.at_any(&["model", ""]), &head, text, config.file())?;
    Ok(Composed::of_text(FAMILY.name, source, decoder))
}

/// Whether a model says how conversations are written.
fn has_template(files: &ModelFiles) -> Result<bool> {
    let config: Option<Value> = files.json("tokenizer_config.json")?;
    let inside = config.as_ref().and_then(|config| config.get("chat_template")).is_some_and(|t| !t.is_null());
    Ok(inside || ["chat_template.jinja", "chat_template.json"].iter().any(|name| files.contains(name)))
}

/// Takes texts alone.
struct Processor {
    /// Whether texts are conversations by a template, which has the tokens that begin them.
    chats: bool,
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, _: &str) -> Result<()> {
        Err(Error::Request(format!(
            "--processor: {key}: the model takes no pictures, so it has no image processor"
        )))
    }

    fn sees(&self) -> bool {
        false
    }

    fn prepare(&self, _: &Rgb8Image, _: usize) -> Result<PreparedImage> {
        Err(no_pictures())
    }

    fn image_mark(&self) -> &str {
        ""
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        if !images.is_empty() {
            return Err(no_pictures());
        }
        let tokens = if self.chats { tokenizer.encode_plain(text)? } else { tokenizer.encode(text)? };
        Ok(Prompt::text(tokens))
    }
}

/// The error about a picture.
pub(crate) fn no_pictures() -> Error {
    Error::Request("the model takes no pictures: expected text alone, found a picture".into())
}
