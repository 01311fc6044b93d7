//! Florence-2: a DaViT tower whose rows an encoder reads with the task, and a decoder that attends to what it makes of them; answers name
//! places.
//!
//! After `Florence2ForConditionalGeneration`, `Florence2Processor` and `BartModel` of transformers. Files are of its layout, or of
//! Microsoft's own.

mod answer;
mod processor;
mod projector;
mod published;

use ocelli_engine::batch::Packed;
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Features, Model, Phase, Result, Stage, Tensor, Vlm};

use self::processor::Processor;
use self::projector::{Projector, ProjectorNames};
use crate::layers::Embedding;
use crate::registry::{Family, Source};
use crate::text::{Decoder, Encoder, EncoderPlan, TextPlan};
use crate::vision::{Davit, DavitNames, DavitPlan, Pixels, upload};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "florence2",
    model_types: &["florence2"],
    models: "Florence-2 (captions, boxes, outlines and texts by task)",
    pictures: "one square",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    // Copies of the one table of words.
    spare: &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
};

struct Florence {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    tower: Davit,
    projector: Projector,
    encoder: Encoder,
    decoder: Decoder,
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id"]);
    config.only("tie_word_embeddings", true)?;
    let published = published::vision(&config)?;
    let vision = match &published {
        Some(vision) => vision.root(),
        None => config.part("vision_config")?,
    };
    let mut tower = DavitPlan::read(&vision)?;
    let text = config.part("text_config")?;
    let plan = TextPlan::bart(&text)?;
    let encoder = EncoderPlan::bart(&text)?;
    vision.only("projection_dim", plan.d)?;
    let places = vision.size("max_position_embeddings", 50)?;
    let frames = vision.size("max_temporal_embeddings", 100)?;
    let at = match published {
        Some(_) => {
            tower.names = DavitNames::Within;
            Places::published(source, plan.vocab)?
        }
        None => Places::of_transformers(source),
    };
    let sizes = (tower.d(), plan.d);
    let tower = Davit::load(cx, &at.tower, tower)?;
    let projector = Projector::load(cx, &at.projector, at.names, sizes, (places, frames))?;
    let words = at.language.at_any(&["shared", "encoder.embed_tokens", "decoder.embed_tokens"]);
    let words = if words.exists() || !at.head.exists() { words } else { at.head.clone() };
    let words = Embedding::load(cx, &words.role(Role::Embedding), plan.vocab, plan.d, 1.0)?;
    let encoder = Encoder::load(cx, &at.language.at("encoder"), encoder, Some(words.clone()))?;
    let language = at.language.at("decoder");
    let decoder = Decoder::with_embedding(cx, &language, &at.head, plan, config.file(), words)?;
    let info = decoder.plan().info(FAMILY.name);
    let parts = source.checkpoint.parts();
    Ok(Model::Vlm(std::sync::Arc::new(Florence { info, parts, tower, projector, encoder, decoder })))
}

/// Where the parts lie in a file.
struct Places<'a> {
    tower: Scope<'a>,
    projector: Scope<'a>,
    names: ProjectorNames,
    language: Scope<'a>,
    head: Scope<'a>,
}

impl<'a> Places<'a> {
    fn of_transformers(source: &Source<'a>) -> Self {
        let root = source.checkpoint.at_any(&["model", ""]);
        Self {
            tower: root.at("vision_tower"),
            projector: root.at("multi_modal_projector"),
            names: ProjectorNames::Transformers,
            language: root.at("language_model"),
            head: source.checkpoint.at("lm_head"),
        }
    }

    /// Those of Microsoft's files. Errors if logits of the `vocab` tokens get something added.
    fn published(source: &Source<'a>, vocab: usize) -> Result<Self> {
        let root = source.checkpoint.root();
        let language = root.at("language_model");
        const BIAS: &str = "final_logits_bias";
        if language.optional(BIAS, &[1, vocab])?.is_some() {
            let bias = source.checkpoint.floats(&language.path(BIAS))?;
            if let Some(found) = bias.iter().find(|&&value| value != 0.0) {
                let what = format!("{}: expected zeros, found {found}", language.path(BIAS));
                return Err(Error::Config { path: source.checkpoint.path().to_owned(), reason: what });
            }
        }
        let (head, language) = (language.at("lm_head"), language.at("model"));
        let names = ProjectorNames::Microsoft;
        Ok(Self { tower: root.at("vision_tower"), projector: root, names, language, head })
    }
}

impl Vlm for Florence {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.parts.clone()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        let mut all = Vec::with_capacity(images.len());
        for (number, image) in images.iter().enumerate() {
            let [tile] = &image.tiles[..] else {
                let found = image.tiles.len();
                return Err(Error::Request(format!("picture: expected one tile, found {found}")));
            };
            let size = (tile.height, tile.width);
            let grid = self.tower.plan().grid(size);
            let rows = cx.alloc_owned(&[1 + grid.0 * grid.1, self.info.d_model], cx.dtype())?;
            cx.scope(|cx| {
                let values = upload(cx, images, &[(number, tile)])?;
                let pixels = Pixels { values, mean: image.normalize.mean, std: image.normalize.std };
                let hidden = cx.alloc(&[grid.0 * grid.1, self.tower.plan().d()], cx.dtype())?;
                cx.measure(Phase::Tower, |cx| self.tower.write_to(cx, &pixels, size, &hidden))?;
                cx.measure(Phase::Connector, |cx| self.projector.write_to(cx, &hidden, grid, &rows))?;
                cx.stage(Stage::FEATURES, &rows)
            })?;
            cx.timings.tiles += 1;
            all.push(Features::of_rows(rows));
        }
        Ok(all)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        let mut memory = Vec::with_capacity(batch.sources.len());
        for source in &batch.sources {
            let rows = self.encoder.embed(cx, &source.tokens, &source.features)?;
            let show = &mut |cx: &mut Ctx, layer| cx.stage(Stage::layer("encoder_layer", layer), &rows);
            self.encoder.run(cx, &rows, &[0, rows.size(0)], None, show)?;
            cx.stage(Stage::of("encoder_last_hidden"), &rows)?;
            memory.push(rows);
        }
        self.decoder.forward_with(cx, batch, &memory, kv)
    }
}
