//! In which files a chat template is looked for, and what is said about one that takes text alone.

use std::path::PathBuf;

use ocelli_engine::Error;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::{ChatTemplate, Message, RenderOptions, TextError, Tokenizer};

use crate::demo_dir;

/// A model directory with the demo's tokenizer and these files, gone when dropped.
struct Model(PathBuf);

impl Model {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("ocelli-lookup-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::copy(demo_dir().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        for (file, content) in
            [("tokenizer_config.json", r#"{"bos_token": "<|im_start|>"}"#)].iter().chain(files)
        {
            std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.join(file), content).unwrap();
        }
        Self(dir)
    }

    fn load(&self) -> Result<Option<ChatTemplate>, TextError> {
        let files = ModelFiles::dir(&self.0);
        ChatTemplate::load(&files, &Tokenizer::load(&files).unwrap())
    }

    fn render(&self) -> String {
        render(&self.load().unwrap().unwrap())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn render(template: &ChatTemplate) -> String {
    template.render(&[Message::text("user", "hi")], &RenderOptions::default()).unwrap()
}

const NAMED: &str = r#"{"bos_token": "<|im_start|>", "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D{{ messages[0].role }}"}]}"#;
const PROCESSOR: (&str, &str) = ("processor_config.json", r#"{"chat_template": "P"}"#);
const JSON: (&str, &str) = ("chat_template.json", r#"{"chat_template": "J{{ bos_token }}"}"#);
const JINJA: (&str, &str) = ("chat_template.jinja", "X");

/// The order of transformers 5.24's processors; the tokenizer's own file comes last.
#[test]
fn one_file_wins() {
    assert!(Model::new("none", &[]).load().unwrap().is_none());
    let config = ("tokenizer_config.json", NAMED);
    assert_eq!(Model::new("config", &[config]).render(), "Duser");
    assert_eq!(Model::new("jinja", &[config, JINJA]).render(), "X");
    assert_eq!(Model::new("json", &[config, JINJA, JSON]).render(), "J<|im_start|>");
    assert_eq!(Model::new("processor", &[config, JINJA, JSON, PROCESSOR]).render(), "P");
    let null = ("processor_config.json", r#"{"chat_template": null, "image_seq_len": 4}"#);
    assert_eq!(Model::new("null", &[JINJA, null]).render(), "X");
}

#[test]
fn named_templates() {
    let list = Model::new("list", &[("tokenizer_config.json", NAMED)]).load().unwrap().unwrap();
    assert_eq!(list.names().collect::<Vec<_>>(), ["tool_use"]);
    assert_eq!(render(list.named("tool_use").unwrap()), "T");
    assert!(list.named("rag").is_none());

    let map = r#"{"chat_template": {"default": "D", "rag": "R"}}"#;
    let map = Model::new("map", &[("processor_config.json", map)]).load().unwrap().unwrap();
    assert_eq!((render(&map), render(map.named("rag").unwrap())), ("D".into(), "R".into()));

    let folder = [
        JINJA,
        ("additional_chat_templates/rag.jinja", "R"),
        ("additional_chat_templates/tool_use.jinja", "T{{ bos_token }}"),
        ("additional_chat_templates/README.md", "not one"),
    ];
    let model = Model::new("folder", &folder);
    let template = model.load().unwrap().unwrap();
    assert_eq!(template.names().collect::<Vec<_>>(), ["rag", "tool_use"]);
    assert_eq!(
        (render(&template), render(template.named("tool_use").unwrap())),
        ("X".into(), "T<|im_start|>".into())
    );
    // Files built into a binary have no folders, but names.
    let files: Vec<(&str, &[u8])> = folder.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let embedded = ModelFiles::Embedded { label: "m", files: files.leak() };
    let tokenizer = Tokenizer::load(&ModelFiles::dir(&model.0)).unwrap();
    let template = ChatTemplate::load(&embedded, &tokenizer).unwrap().unwrap();
    assert_eq!(render(template.named("rag").unwrap()), "R");

    for (name, bad, reason) in [
        ("nodefault", r#"[{"name": "tool_use", "template": "T"}]"#, "expected a template named `default`"),
        ("notext", r#"[{"name": "default"}]"#, "template 0: expected a name and a text"),
        ("number", "3", "expected a string or a list of named templates"),
    ] {
        let model = Model::new(name, &[("tokenizer_config.json", &format!(r#"{{"chat_template": {bad}}}"#))]);
        let e = model.load().unwrap_err().to_string();
        assert_eq!(
            e,
            format!("{}: chat template: {reason}", model.0.join("tokenizer_config.json").display())
        );
    }
}

/// What is said when the template that was found takes text alone.
#[test]
fn text_alone_says_what_was_looked_for() {
    let text = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}";
    let hint = |name: &str, kind: &str, file: &str| {
        let content = match file.ends_with(".jinja") {
            true => text.to_owned(),
            false => serde_json::json!({"chat_template": text}).to_string(),
        };
        let config = serde_json::json!({"model_type": kind}).to_string();
        let model = Model::new(name, &[(file, &content), ("config.json", &config)]);
        let template = model.load().unwrap().unwrap();
        assert!(!template.accepts_images());
        let e = template.render(&[Message::user(1, "hi")], &RenderOptions::default()).unwrap_err();
        let path = model.0.join(file);
        assert_eq!(
            e.to_string(),
            format!("{}: chat template: takes text alone, found a message with an image", path.display())
        );
        Error::from(e).hint().unwrap()
    };
    let looked =
        "looked for one that takes pictures in chat_template.json and chat_template.jinja, found none";
    for (i, (kind, part)) in [
        ("internvl_chat", "InternVL's own code puts `<image>`"),
        ("minicpmv", "MiniCPM-V's own code puts `(<image>./</image>)`"),
        ("molmo", "Molmo's own code"),
        ("qwen2_5_vl", "Qwen keeps the template with pictures in chat_template.json"),
        ("other", "some families"),
    ]
    .into_iter()
    .enumerate()
    {
        let hint = hint(&format!("alone{i}"), kind, "tokenizer_config.json");
        assert!(hint.starts_with(looked) && hint.contains(part), "{hint}");
    }
    let hint = hint("alonejinja", "other", "chat_template.jinja");
    assert!(
        hint.starts_with("looked for one that takes pictures in chat_template.json, found none"),
        "{hint}"
    );
}
