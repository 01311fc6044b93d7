//! Every stage of one pass, as the model shows it: what `verify` and `compare` hold against other values.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::{Ctx, Features, Pipeline, Prompt, Result, Stage};

/// Values of each part and layer.
pub type Values = BTreeMap<(&'static str, Option<usize>), Vec<f32>>;

/// Runs the tower and one pass over a prompt and what follows it: every stage that the model shows, the logits of the last `want` tokens
/// among them, and the pictures' features.
///
/// # Errors
/// As a pass.
pub fn observed(
    cx: &mut Ctx,
    pipeline: &Pipeline,
    images: &[PreparedImage],
    prompt: &Prompt,
    (after, want): (&[u32], usize),
) -> Result<(Values, Vec<Features>)> {
    let seen = Watch::begin(cx);
    let features = pipeline.encode(cx, images)?;
    let tokens: Vec<u32> = prompt.tokens.iter().chain(after).copied().collect();
    let info = pipeline.model.info();
    let mut kv = KvCache::for_one(cx, &info.kv, prompt.extent().at(tokens.len()), tokens.len())?;
    let given: Vec<Option<Features>> = features.iter().cloned().map(Some).collect();
    let chunk = Chunk { seq: kv.open(prompt.memory_rows()), prompt, features: &given, tokens: &tokens, want };
    let batch = Batch { chunks: vec![chunk], ids: None };
    cx.scope(|cx| {
        let packed = batch.pack(cx, &mut kv, info.packing())?;
        pipeline.model.forward(cx, &packed, &kv).map(drop)
    })?;
    Ok((seen.end(cx), features))
}

/// Keeps the values of every stage.
pub struct Watch(Arc<Mutex<Values>>);

impl Watch {
    /// From now on.
    pub fn begin(cx: &mut Ctx) -> Self {
        let seen: Arc<Mutex<Values>> = Arc::default();
        let sink = seen.clone();
        cx.observe(Some(Box::new(move |stage: Stage, _, values| {
            if let Ok(mut seen) = sink.lock() {
                seen.entry((stage.part, stage.layer)).or_default().extend_from_slice(values);
            }
        })));
        Self(seen)
    }

    /// What was seen.
    pub fn end(self, cx: &mut Ctx) -> Values {
        cx.observe(None);
        self.0.lock().map(|mut seen| std::mem::take(&mut *seen)).unwrap_or_default()
    }
}
