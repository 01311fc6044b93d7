//! Answers of models that think.

use super::*;
use crate::files::ModelFiles;
use crate::text::Tokenizer;

fn tokenizer(name: &str) -> Tokenizer {
    let dir = format!("{}/../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    Tokenizer::load(&ModelFiles::dir(dir)).unwrap()
}

/// An answer that is spelled so, token by token: the answer, and the pieces of thoughts and of text as they came.
fn spelled(tokenizer: &Tokenizer, prompt: &str, answer: &str, stop: &[&str]) -> (Answer, [String; 2]) {
    let prompt = Prompt::text(tokenizer.encode_plain(prompt).unwrap());
    let params = SamplingParams { stop: stop.iter().map(|s| (*s).to_owned()).collect(), ..params(1000) };
    let model = Fake::new(both());
    let mut live = Live::new(0, Request { prompt, media: Vec::new(), params }, tokenizer, model.info());
    let mut pieces = [String::new(), String::new()];
    let ids = tokenizer.encode_plain(answer).unwrap();
    let mut reason = FinishReason::Cancelled;
    for (i, &id) in ids.iter().enumerate() {
        live.params.max_tokens = if i + 1 == ids.len() { i + 1 } else { 1000 };
        let step = live.accept(id, tokenizer, 100_000).unwrap();
        pieces[usize::from(!step.thought)] += &step.text;
        if let Some(ends) = step.ends {
            reason = ends;
            break;
        }
    }
    (live.into_answer(reason), pieces)
}

#[test]
fn thoughts_are_no_part_of_the_answer() {
    let begins = "<|im_start|>assistant\n<think>\n";
    let shut = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let plain = "<|im_start|>assistant\n";
    let asked = "<|im_start|>user\nwhat is <think> for?<|im_end|>\n<|im_start|>assistant\n";
    for name in ["qwen3_5", "glm4v"] {
        let tokenizer = tokenizer(name);
        for (prompt, answer, reasoning, text) in [
            (begins, "I see.\n</think>\n\nFour.", Some("I see."), "Four."),
            (shut, "Four.", None, "Four."),
            (plain, "<think>\nI see é.\n</think>\n\nFour é.", Some("I see é."), "Four é."),
            (plain, "<think>a</think>b<think>c</think>d", Some("ac"), "bd"),
            // A mark that closes nothing is a special token as others are: no text.
            (plain, "Four </think> five", None, "Four  five"),
            (begins, "I see", Some("I see"), ""),
            (begins, "\n\n</think>\n\nFour.", None, "Four."),
            (asked, "Four.", None, "Four."),
        ] {
            let (found, [thoughts, said]) = spelled(&tokenizer, prompt, answer, &[]);
            assert_eq!((found.reasoning.as_deref(), &*found.text), (reasoning, text), "{name} {answer:?}");
            assert_eq!((thoughts.trim_end(), &*said), (reasoning.unwrap_or(""), text), "{name} {answer:?}");
            assert_eq!(found.token_ids, tokenizer.encode_plain(answer).unwrap());
        }
        // A stop text does not lie across the end of thoughts.
        let (found, _) = spelled(&tokenizer, begins, "a b</think>c stop d", &["bc", "stop"]);
        assert_eq!((found.reasoning.as_deref(), &*found.text), (Some("a b"), "c "));
        assert_eq!(found.finish_reason, FinishReason::Stop);
    }
}

#[test]
fn other_models_do_not_think() {
    let (found, _) = spelled(&super::tokenizer(), "x", "<think>a</think>b", &[]);
    assert_eq!((found.reasoning, &*found.text), (None, "<think>a</think>b"));
}
