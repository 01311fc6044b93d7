//! BLIP: a tower, and a BERT decoder that attends to its rows (captions), or to those of an encoder that reads a question with the
//! picture (answers).
//!
//! After `BlipForConditionalGeneration`, `BlipForQuestionAnswering`, `BlipProcessor` and `BlipImageProcessor` of transformers.

mod processor;

use ocelli_engine::batch::Packed;
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::{Ctx, Error, Features, Model, Result, Stage, Tensor, Vlm};

use self::processor::Processor;
use crate::connector::Whole;
use crate::fields::Fields;
use crate::registry::{Family, Source};
use crate::text::{BERT_NAMES, Decoder, Encoder, EncoderCross, EncoderPlan, TextPlan};
use crate::vision::{Vit, VitPlan, encode};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "blip",
    model_types: &["blip"],
    models: "BLIP (captions, and answers to questions)",
    pictures: "one square",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[],
};

/// What the model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// To go on with a caption.
    Caption,
    /// To answer a question.
    Answer,
}

/// The task of a checkpoint's class.
fn task(config: &Fields<'_>) -> Result<Task> {
    let classes: Vec<String> = config.or("architectures", Vec::new())?;
    match classes.first().map(String::as_str) {
        Some("BlipForConditionalGeneration") => Ok(Task::Caption),
        Some("BlipForQuestionAnswering") => Ok(Task::Answer),
        found => {
            let known = "BlipForConditionalGeneration or BlipForQuestionAnswering";
            Err(config.bad("architectures", format!("expected {known}, found {}", found.unwrap_or("none"))))
        }
    }
}

struct Blip {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    tower: Vit,
    /// Reads the question, if there is one.
    encoder: Option<Encoder>,
    decoder: Decoder,
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_text_hidden_size", "label_smoothing", "logit_scale_init_value"]);
    config.only("tie_word_embeddings", true)?;
    let vision = config.part("vision_config")?;
    vision.inert(&["tie_word_embeddings"]);
    let tower = VitPlan::blip(&vision)?;
    let task = task(&config)?;
    let plan = TextPlan::blip(&config.part("text_config")?, tower.d)?;
    if task == Task::Answer && plan.d != tower.d {
        let what = format!("expected {}, the width of the tower, found {}", tower.d, plan.d);
        return Err(config.at("text_config").bad("hidden_size", what));
    }
    let memory = tower.d;
    let root = source.checkpoint.root();
    let tower = Vit::load(cx, &root.at("vision_model"), tower)?;
    let encoder = match task {
        Task::Caption => None,
        Task::Answer => {
            let plan = EncoderPlan {
                vocab: plan.vocab,
                positions: plan.max_positions,
                first: 0,
                embed_scale: 1.0,
                d: plan.d,
                mlp: plan.mlp,
                layers: plan.layers.len(),
                heads: plan.heads_q,
                eps: plan.norm_eps,
                act: plan.act,
                cross: Some(EncoderCross { memory, every: 1 }),
                names: BERT_NAMES,
            };
            Some(Encoder::load(cx, &root.at("text_encoder"), plan, None)?)
        }
    };
    let text = root.at("text_decoder");
    let decoder = Decoder::load(cx, &text.at("bert"), &text.at("cls.predictions"), plan, config.file())?;
    let info = decoder.plan().info(FAMILY.name);
    let parts = source.checkpoint.parts();
    Ok(Model::Vlm(std::sync::Arc::new(Blip { info, parts, tower, encoder, decoder })))
}

impl Vlm for Blip {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.parts.clone()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        let connector = Whole::of(self.tower.plan());
        let features = encode(cx, &self.tower, &connector, self.tower.plan().d, images)?;
        Ok(features.into_iter().map(|of| Features { memory: of.rows, ..Features::default() }).collect())
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        let Some(encoder) = &self.encoder else { return self.decoder.forward(cx, batch, kv) };
        let mut memory = Vec::with_capacity(batch.sources.len());
        for source in &batch.sources {
            let [picture] = &source.memory[..] else {
                let found = source.memory.len();
                return Err(Error::Request(format!("a question: expected one picture, found {found}")));
            };
            let rows = encoder.embed(cx, &source.tokens, &[])?;
            let seen = (picture, &[0, picture.size(0)][..]);
            encoder.run(cx, &rows, &[0, rows.size(0)], Some(seen), &mut |_, _| Ok(()))?;
            cx.stage(Stage::of("question_hidden"), &rows)?;
            memory.push(rows);
        }
        self.decoder.forward_with(cx, batch, &memory, kv)
    }
}
