//! Florence-2 in the layout of Microsoft's own files: the golden checkpoint, written in it, gives what transformers' layout gives.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, decode_file};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::generate;
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::{Backend, Device, DeviceOptions};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::published::Folder;
use super::{explain, golden, run};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn write(tensors: &Tensors, path: &Path) {
    let view = |(dtype, shape, data)| TensorView::new(dtype, shape, data).expect("as many bytes");
    let views =
        tensors.iter().map(|(name, (dtype, shape, data))| (name, view((*dtype, shape.clone(), data))));
    std::fs::write(path, safetensors::serialize(views, None).expect("safetensors")).expect("a file");
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// What a tensor of transformers' layout is called in Microsoft's.
fn renamed(name: &str) -> String {
    let name = name.strip_prefix("model.").expect("a tensor of the model");
    if let Some(rest) = name.strip_prefix("language_model.") {
        return format!("language_model.model.{rest}");
    }
    if let Some(rest) = name.strip_prefix("multi_modal_projector.") {
        return match rest {
            "image_projection.weight" => "image_projection".into(),
            _ => rest.replace("image_position_embed", "image_pos_embed"),
        };
    }
    // The norm of a part, and what follows it, by the kind of its block.
    let attention = if name.contains("spatial_block") { "window_attn" } else { "channel_attn" };
    let pairs = [
        (".conv.", ".proj.".to_owned()),
        (".conv1.", ".conv1.fn.dw.".to_owned()),
        (".conv2.", ".conv2.fn.dw.".to_owned()),
        (".norm1.", format!(".{attention}.norm.")),
        (".norm2.", ".ffn.norm.".to_owned()),
        ("_attn.qkv.", "_attn.fn.qkv.".to_owned()),
        ("_attn.proj.", "_attn.fn.proj.".to_owned()),
        (".ffn.fc", ".ffn.fn.net.fc".to_owned()),
    ];
    let pair = pairs.iter().find(|(from, _)| name.contains(from));
    pair.map_or(name.to_owned(), |(from, to)| name.replace(from, to))
}

/// These tensors in Microsoft's layout, with the table of words under the name of `words`.
fn moved(tensors: &Tensors, words: &str) -> Tensors {
    let mut out = Tensors::new();
    for (name, (dtype, shape, data)) in tensors {
        let (mut name, mut shape, mut data) = (renamed(name), shape.clone(), data.clone());
        if name == "image_projection" {
            let (rows, cols) = (shape[0], shape[1]);
            let at = |i: usize| &data[(i % rows * cols + i / rows) * 2..][..2];
            data = (0..rows * cols).flat_map(at).copied().collect();
            shape.reverse();
        }
        if name == "language_model.model.shared.weight" {
            let bias = "language_model.final_logits_bias".to_owned();
            out.insert(bias, (dtype.to_owned(), vec![1, shape[0]], vec![0; shape[0] * 2]));
            name = format!("language_model.{words}.weight");
        }
        out.insert(name, (*dtype, shape, data));
    }
    out
}

/// Fields of one object under the names of another spelling.
fn taken(from: &Value, names: &[(&str, &str)]) -> Map<String, Value> {
    names.iter().map(|(to, name)| ((*to).to_owned(), from[*name].clone())).collect()
}

/// The configuration of the golden model as Microsoft spells it, with `vocab` tokens.
fn config(modern: &Value, vocab: usize) -> Value {
    let vision = &modern["vision_config"];
    let mut out = json!({
        "architectures": ["Florence2ForConditionalGeneration"], "model_type": "florence2", "ignore_index": -100,
        "auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"}, "is_encoder_decoder": true,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": vocab,
        "projection_dim": vision["projection_dim"], "text_config": modern["text_config"], "torch_dtype": "bfloat16",
    });
    out["text_config"]["vocab_size"] = vocab.into();
    out["text_config"]["model_type"] = Value::Null;
    for (key, value) in
        [("add_bias_logits", json!(false)), ("classif_dropout", json!(0.1)), ("num_beams", json!(3))]
    {
        out["text_config"][key] = value;
    }
    let mut davit = taken(
        vision,
        &[
            ("dim_embed", "embed_dim"),
            ("depths", "depths"),
            ("drop_path_rate", "drop_path_rate"),
            ("mlp_ratio", "mlp_ratio"),
            ("num_groups", "num_groups"),
            ("num_heads", "num_heads"),
            ("patch_padding", "patch_padding"),
            ("patch_prenorm", "patch_prenorm"),
            ("patch_size", "patch_size"),
            ("patch_stride", "patch_stride"),
            ("projection_dim", "projection_dim"),
            ("window_size", "window_size"),
        ],
    );
    let more = json!({
        "model_type": "davit", "enable_checkpoint": false,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": vision["max_temporal_embeddings"]},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": vision["max_position_embeddings"]},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    });
    davit.extend(more.as_object().expect("an object").clone());
    out["vision_config"] = davit.into();
    out
}

fn folder(name: &str) -> Folder {
    let folder = Folder(std::env::temp_dir().join(format!("ocelli-florence2-{name}-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).expect("a folder");
    folder
}

/// A folder in Microsoft's layout. Its tokenizer has no token for pictures, and none of those that the processor adds.
fn microsoft(name: &str, tensors: &Tensors, words: &str) -> Folder {
    let (source, folder) = (golden("florence2"), folder(name));
    write(&moved(tensors, words), &folder.0.join("model.safetensors"));
    let vocab = tensors["model.language_model.shared.weight"].1[0];
    let processor = json_of(&source.join("processor_config.json"));
    let mut tokenizer = json_of(&source.join("tokenizer.json"));
    let added = tokenizer["added_tokens"].as_array_mut().expect("tokens");
    added.retain(|token| token["content"] != "<image>");
    let files = [
        ("config.json", config(&json_of(&source.join("config.json")), vocab)),
        ("preprocessor_config.json", processor["image_processor"].clone()),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", json!({"model_max_length": 1024})),
    ];
    for (file, content) in files {
        std::fs::write(folder.0.join(file), content.to_string()).expect("a file");
    }
    folder
}

fn cpu() -> Arc<dyn Device> {
    ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU")
}

#[test]
fn the_golden_model_in_the_layout_of_microsoft() {
    let source = golden("florence2");
    let tensors = read(&source.join("model.safetensors"));
    // Converters leave the one table of words under any of its names.
    for words in ["model.shared", "model.encoder.embed_tokens", "lm_head"] {
        let folder = microsoft(&words.replace('.', "-"), &tensors, words);
        let report = run(&folder.0, &source, &*cpu());
        assert!(report.cases.len() >= 3);
        for case in &report.cases {
            // Its rows of pictures have no token of their own.
            let stages = case.stages.iter().filter(|stage| stage.name != "source_ids");
            assert!(
                stages.clone().count() > 5 && stages.clone().all(|stage| stage.pass),
                "{}",
                explain(&report)
            );
            assert_eq!(case.greedy.got, case.greedy.expected, "{words}: {}", case.name);
        }
    }
}

/// Words that the processor adds, in prompts and in answers: the layout of transformers has them in its files.
#[test]
fn places_in_both_layouts() {
    let source = golden("florence2");
    let mut tensors = read(&source.join("model.safetensors"));
    // The last of the words of the files is `<mask>`.
    let (first, names) = (441, added());
    let vocab = first + names.len();
    let (_, shape, data) = tensors.get_mut("model.language_model.shared.weight").expect("the words");
    let row = shape[1] * 2;
    shape[0] = vocab;
    // Every new word is like one of those that there are.
    data.truncate(first * row);
    let more: Vec<u8> =
        (0..names.len()).flat_map(|i| data[(i * 83 + 7) % first * row..][..row].to_vec()).collect();
    data.extend(&more);
    for (at, byte) in data.iter_mut().enumerate().skip(first * row) {
        // The lowest bits of values of 16 bits.
        *byte ^= if at % 2 == 0 { (at * 29 % 61) as u8 } else { 0 };
    }

    let modern = folder("modern");
    write(&tensors, &modern.0.join("model.safetensors"));
    let mut configuration = json_of(&source.join("config.json"));
    configuration["text_config"]["vocab_size"] = vocab.into();
    // Where the pictures' rows come is a token of the vocabulary: the embedding has one row each.
    configuration["image_token_id"] = 1.into();
    let mut tokenizer = json_of(&source.join("tokenizer.json"));
    let tokens = tokenizer["added_tokens"].as_array_mut().expect("tokens");
    tokens.retain(|token| token["content"] != "<image>");
    tokens.extend(names.iter().enumerate().map(|(number, name)| {
        json!({"id": first + number, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    }));
    let mut processor = json_of(&source.join("processor_config.json"));
    processor["post_processor_config"] =
        json!({"phrase_grounding": {"banned_grounding_tokens": ["it", "a", "the"]}});
    for (file, content) in
        [("config.json", configuration), ("tokenizer.json", tokenizer), ("processor_config.json", processor)]
    {
        std::fs::write(modern.0.join(file), content.to_string()).expect("a file");
    }
    std::fs::copy(source.join("tokenizer_config.json"), modern.0.join("tokenizer_config.json"))
        .expect("a copy");
    let published = microsoft("published", &tensors, "model.shared");

    let device = cpu();
    let picture =
        decode_file(&golden("images/china_131x87.png"), &DecodeOptions::default()).expect("a picture");
    let answers = [&modern, &published].map(|folder| {
        let files = ModelFiles::dir(&folder.0);
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
        let model = ocelli_models::load(&files, &mut cx).expect("the model");
        let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
        let answer = |task: &str| {
            let messages = [Message::user(1, task)];
            let params = SamplingParams { max_tokens: 60, ignore_eos: true, ..SamplingParams::default() };
            let request =
                pipeline.request(&messages, std::slice::from_ref(&picture), params).expect("a request");
            let asked = request.prompt.source.tokens.clone();
            let go_on = |_: usize, _: ocelli_engine::scheduler::Piece<'_>| ControlFlow::Continue(());
            let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on);
            let ids = answers.expect("an answer")[0].token_ids.clone();
            let regions = pipeline.regions(&messages, &ids, (131, 87)).expect("regions");
            (asked, ids, regions.map(|regions| regions.fields))
        };
        [
            "<OD>",
            "<CAPTION_TO_PHRASE_GROUNDING>an old temple",
            "<REGION_TO_SEGMENTATION><loc_70><loc_0><loc_999><loc_512>",
            "<OCR_WITH_REGION>",
        ]
        .map(answer)
    });
    let [modern, published] = answers;
    let place = names.iter().position(|name| name == "<loc_70>").expect("a name") + first;
    assert!(modern[2].0.contains(&(place as u32)), "{:?}", modern[2].0);
    let placed = modern.iter().flat_map(|(_, ids, _)| ids).filter(|&&id| id as usize > first).count();
    assert!(placed > 20, "{placed} words beyond those of the files");
    assert_eq!(modern, published);
}

/// What Microsoft's processor adds to its tokenizer.
fn added() -> Vec<String> {
    let pairs = |names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|name| [format!("<{name}>"), format!("</{name}>")]).collect()
    };
    let mut all = pairs(&["od", "ocr"]);
    all.extend((0..1000).map(|bin| format!("<loc_{bin}>")));
    all.extend(pairs(&["cap", "ncap", "dcap", "grounding", "seg"]));
    all.push("<sep>".into());
    all.extend(pairs(&["region_cap", "region_to_desciption", "proposal", "poly"]));
    all.push("<and>".into());
    all
}

#[test]
fn what_the_layout_could_say_and_is_not_built_is_refused() {
    let tensors = read(&golden("florence2").join("model.safetensors"));
    let folder = microsoft("refused", &tensors, "model.shared");
    let (weights, config) = (folder.0.join("model.safetensors"), folder.0.join("config.json"));
    let told = || {
        let mut cx = Ctx::new(&*cpu(), Precision::default()).expect("a stream");
        ocelli_models::load(&ModelFiles::dir(&folder.0), &mut cx).err().map(|error| error.to_string())
    };
    assert_eq!(told(), None);
    let mut changed = read(&weights);
    changed.get_mut("language_model.final_logits_bias").expect("the bias").2[7] = 0x40;
    write(&changed, &weights);
    let error = told().expect("an error");
    assert!(error.contains("language_model.final_logits_bias: expected zeros, found"), "{error}");
    let mut other = json_of(&config);
    other["vision_config"]["visual_temporal_embedding"]["type"] = "LEARNED".into();
    std::fs::write(&config, other.to_string()).expect("a file");
    let error = told().expect("an error");
    assert!(error.contains("vision_config.visual_temporal_embedding.type: expected \"COSINE\""), "{error}");
}
