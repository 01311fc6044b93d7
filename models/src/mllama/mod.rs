//! Llama 3.2 Vision: a tower that sees all tiles of a picture at once, and a decoder some of whose layers attend to its rows.
//!
//! After `MllamaForConditionalGeneration`, `MllamaProcessor` and `MllamaImageProcessor` of transformers.

mod processor;
mod tower;

use ocelli_engine::batch::Packed;
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::weights::Role;
use ocelli_engine::{Ctx, Features, Model, Phase, Result, Stage, Tensor, Vlm};

use self::processor::Processor;
use self::tower::{Tower, TowerPlan};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "mllama",
    model_types: &["mllama"],
    models: "Llama 3.2 Vision",
    pictures: "tiles, which cross attention sees",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[],
};

struct Mllama {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    tower: Tower,
    decoder: Decoder,
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_index", "image_token_id", "tie_word_embeddings"]);
    let tower = TowerPlan::read(&config.part("vision_config")?)?;
    let text = TextPlan::mllama(&config.part("text_config")?)?;
    let root = source.checkpoint.at_any(&["model", ""]);
    let projector = root.at("multi_modal_projector").role(Role::Connector);
    let tower = Tower::load(cx, &root.at("vision_model"), &projector, tower, text.d)?;
    let language = root.at("language_model");
    let head = source.checkpoint.at_any(&["language_model.lm_head", "lm_head"]);
    let decoder = Decoder::load(cx, &language.at_any(&["model", ""]), &head, text, config.file())?;
    let info = decoder.plan().info(FAMILY.name);
    let parts = source.checkpoint.parts();
    Ok(Model::Vlm(std::sync::Arc::new(Mllama { info, parts, tower, decoder })))
}

impl Vlm for Mllama {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.parts.clone()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        let mut all = Vec::with_capacity(images.len());
        for number in 0..images.len() {
            let rows = cx.alloc_owned(&[self.tower.rows(), self.info.d_model], cx.dtype())?;
            cx.measure(Phase::Tower, |cx| self.tower.write_to(cx, images, number, &rows))?;
            cx.stage(Stage::FEATURES, &rows)?;
            cx.timings.tiles += images[number].tiles.len();
            all.push(Features::of_memory(rows));
        }
        Ok(all)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        self.decoder.forward(cx, batch, kv)
    }
}
