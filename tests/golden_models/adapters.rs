//! An adapter that PEFT wrote, on some sequences of a batch and not on others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_engine::adapter::Peft;
use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::kv::{Extent, KvCache};
use ocelli_engine::weights::TensorFile;
use ocelli_engine::{Ctx, Features, Model, Precision, Prompt};
use ocelli_kernels::{Backend, Device, DeviceOptions};

/// What counts as equal of logits, by the largest of them: as of the other golden models in f32.
const TOLERANCE: f32 = 2e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/train").join(name)
}

fn ints(file: &TensorFile, name: &str) -> Vec<Vec<i64>> {
    let width = file.info(name).expect("known").shape[1];
    file.ints(name).expect("integers").chunks(width).map(<[i64]>::to_vec).collect()
}

/// Of three sequences the first and the last have the adapter: logits are those of PEFT there, and the model's own in between.
pub fn on_some_rows(device: &dyn Device) {
    let files = ModelFiles::dir(folder("smolvlm"));
    let mut cx = Ctx::new(device, Precision::default()).expect("a context");
    let loaded = ocelli_models::load(&files, &mut cx).expect("a model");
    let Model::Vlm(model) = loaded.model else { panic!("it answers") };
    let adapter =
        Peft::open(&folder("lora")).and_then(|peft| peft.place(&mut cx, "golden")).expect("an adapter");
    let adapter = Arc::new(adapter);
    let plain = TensorFile::open(&folder("smolvlm").join("train.safetensors")).expect("a reference");
    let adapted = TensorFile::open(&folder("lora").join("train.safetensors")).expect("a reference");
    let [plain_logits, adapted_logits] =
        [&plain, &adapted].map(|file| file.floats("logits").expect("logits"));
    let (ids, masks, labels) =
        (ints(&plain, "input_ids"), ints(&plain, "attention_mask"), ints(&plain, "labels"));
    let config: serde_json::Value = files.require_json("config.json").expect("a configuration");
    let image_token = config["image_token_id"].as_u64().expect("a token") as u32;
    let shape = plain.info("pictures").expect("pictures").shape.to_vec();
    let pictures: Vec<_> = plain
        .bytes("pictures")
        .expect("pictures")
        .chunks(shape[1] * shape[2] * 3)
        .map(|bytes| Rgb8Image::from_raw(shape[2], shape[1], bytes.to_vec()).expect("a picture"))
        .map(|picture| loaded.processor.prepare(&picture, 1).expect("prepared"))
        .collect();
    let prompts: Vec<Prompt> = ids
        .iter()
        .zip(&masks)
        .map(|(ids, mask)| {
            let tokens: Vec<u32> =
                ids.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id as u32).collect();
            let rows = tokens.iter().filter(|token| **token == image_token).count();
            Prompt::with_image_tokens(tokens, image_token, &[rows]).expect("a prompt")
        })
        .collect();
    let features = model.encode(&mut cx, &pictures.iter().collect::<Vec<_>>()).expect("features");
    let features: Vec<Vec<Option<Features>>> = features.into_iter().map(|one| vec![Some(one)]).collect();
    let info = model.info();
    let extent = Extent { tokens: prompts.iter().map(Prompt::len).sum(), memory: 0 };
    let pages: Vec<usize> =
        info.kv.0.iter().map(|group| prompts.len() * group.most_pages(extent, extent.tokens)).collect();
    let mut kv = KvCache::new(&mut cx, &info.kv, &pages).expect("memory");
    let chunks: Vec<Chunk<'_>> = prompts
        .iter()
        .zip(&features)
        .map(|(prompt, features)| Chunk {
            seq: kv.open(0),
            prompt,
            features,
            tokens: &prompt.tokens,
            want: prompt.len(),
        })
        .collect();
    let ends: Vec<usize> = prompts
        .iter()
        .scan(0, |end, prompt| {
            *end += prompt.len();
            Some(*end)
        })
        .collect();
    let rows = vec![(0..ends[0], adapter.clone()), (ends[1]..ends[2], adapter)];
    let packed = Batch { chunks, ids: None }.pack(&mut cx, &mut kv, info.packing()).expect("a batch");
    let logits = cx.adapt_rows(rows, |cx| model.forward(cx, &packed, &kv)).expect("logits");
    let found = cx.download(&logits).expect("values");
    let vocab = info.vocab;
    let (mut first, mut known) = (0, 0);
    for (number, (prompt, labels)) in prompts.iter().zip(&labels).enumerate() {
        let all = if number == 1 { &plain_logits } else { &adapted_logits };
        // A row before a token that is learnt is in the reference.
        for at in (0..prompt.len() - 1).filter(|at| labels[at + 1] >= 0) {
            let found = &found[(first + at) * vocab..][..vocab];
            let wanted = &all[known * vocab..][..vocab];
            let most = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
            let off = found.iter().zip(wanted).fold(0f32, |off, (a, b)| off.max((a - b).abs()));
            assert!(off <= TOLERANCE * most, "sequence {number}, row {at}: off by {off} of {most}");
            known += 1;
        }
        first += prompt.len();
    }
    assert_eq!(known * vocab, plain_logits.len());
}

#[test]
fn on_the_cpu() {
    on_some_rows(&*ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU"));
}
