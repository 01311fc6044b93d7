//! BLIP-2: a tower, learned queries that attend to its rows, and OPT.
//!
//! After `Blip2ForConditionalGeneration`, `Blip2Processor` and `BlipImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Error, Model, Prompt, Result};

use crate::composed::Composed;
use crate::connector::QFormer;
use crate::fields::{Config, Fields};
use crate::processor::SquareProcessor;
use crate::registry::{Family, Source};
use crate::text::{BERT_NAMES, Decoder, EncoderCross, EncoderNames, EncoderPlan, TextPlan};
use crate::vision::{Vit, VitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "blip2",
    model_types: &["blip-2"],
    models: "BLIP-2 (OPT decoders)",
    pictures: "one square",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[],
};

/// Names as the Q-Former has them.
const NAMES: EncoderNames = EncoderNames {
    embed_norm: "layernorm",
    qkv: ["attention.query", "attention.key", "attention.value"],
    mlp: ["intermediate_query.dense", "output_query.dense"],
    mlp_norm: "output_query.LayerNorm",
    ..BERT_NAMES
};

/// `Blip2QFormerConfig`; `tower` has the features of a patch. `alike`: the queries have as many, a head for each 64, and one layer where
/// nothing is stated.
pub(crate) fn qformer(config: &Fields<'_>, tower: usize, alike: bool) -> Result<EncoderPlan> {
    config.model_type(&["blip_2_qformer"])?;
    config.unset("use_qformer_text_input")?;
    // Of texts, which it does not read.
    config.inert(&["vocab_size", "max_position_embeddings", "position_embedding_type"]);
    config.inert(&["hidden_dropout_prob", "attention_probs_dropout_prob"]);
    let (d, heads) = if alike {
        // What the outer configuration writes over.
        config.inert(&["encoder_hidden_size", "hidden_size", "num_attention_heads"]);
        (tower, (tower / 64).max(1))
    } else {
        config.only("encoder_hidden_size", tower)?;
        (config.size("hidden_size", 768)?, config.size("num_attention_heads", 12)?)
    };
    let (layers, every) = if alike { (1, 1) } else { (12, 2) };
    if !d.is_multiple_of(heads) {
        let what = format!("expected a multiple of num_attention_heads {heads}, found {d}");
        return Err(config.bad("hidden_size", what));
    }
    Ok(EncoderPlan {
        vocab: 0,
        positions: 0,
        first: 0,
        embed_scale: 1.0,
        d,
        mlp: config.size("intermediate_size", 3072)?,
        layers: config.size("num_hidden_layers", layers)?.min(1 << 16),
        heads,
        eps: config.or("layer_norm_eps", 1e-12)?,
        act: activation(config, "hidden_act", "gelu")?,
        cross: Some(EncoderCross { memory: tower, every: config.size("cross_attention_frequency", every)? }),
        names: NAMES,
    })
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_text_hidden_size", "logit_scale_init_value", "image_token_index"]);
    config.only("use_decoder_only_language_model", true)?;
    let queries = config.size("num_query_tokens", 32)?;
    let tower = VitPlan::blip2(&config.part("vision_config")?)?;
    let connector = qformer(&config.part("qformer_config")?, tower.d, false)?;
    let tied: Option<bool> = config.get("tie_word_embeddings")?;
    let text = TextPlan::read(&config.part("text_config")?, &["opt"], tied)?;
    let sizes = (queries, text.d, tower.extra_rows());
    let root = source.checkpoint.at_any(&["model", ""]);
    let tower = Vit::load(cx, &root.at("vision_model"), tower)?;
    let connector = QFormer::load(cx, &root, connector, sizes)?;
    let language = root.at("language_model");
    let at = language.at("model.decoder");
    let decoder = Decoder::load(cx, &at, &language.at("lm_head"), text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Pictures squeezed to squares; their tokens come before the whole text.
#[derive(Clone, Debug)]
struct Processor {
    square: SquareProcessor,
    token: u32,
    queries: usize,
}

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let tower = VitPlan::blip2(&root.part("vision_config")?)?;
        let token = root.any(&["image_token_index", "image_token_id"])?.unwrap_or(50_265);
        Ok(Self {
            square: SquareProcessor::blip(files, (tower.patch, tower.extra_rows()), (String::new(), token))?,
            token,
            queries: root.size("num_query_tokens", 32)?,
        })
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.square.set(key, value)
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        self.square.prepare(image, threads)
    }

    fn image_mark(&self) -> &str {
        ""
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        if images.len() > 1 {
            return Err(Error::Request(format!(
                "BLIP-2: expected at most one picture, found {}",
                images.len()
            )));
        }
        let rows = vec![self.queries; images.len()];
        let mut tokens = vec![self.token; rows.iter().sum()];
        tokens.extend(tokenizer.encode(text)?);
        Prompt::with_image_tokens(tokens, self.token, &rows)
    }
}
