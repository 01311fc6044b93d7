//! `--otlp`: spans of each stage.

use ocelli_tests::collector::{Came, Collector, Span};

use crate::{Temp, command, ended, example, ocelli};

/// The one span of a name.
#[track_caller]
fn one<'a>(came: &'a Came, name: &str) -> &'a Span {
    let named = came.named(name);
    assert_eq!(named.len(), 1, "{name}: {came:?}");
    named[0]
}

/// Spans of the stages of one answer, each within its own.
#[track_caller]
fn stages(came: &Came, answer: &Span) {
    for name in ["wait", "prefill", "decode"] {
        let of_answer: Vec<&Span> =
            came.named(name).into_iter().filter(|span| span.parent == answer.id).collect();
        assert_eq!(of_answer.len(), 1, "{name}: {came:?}");
        let stage = of_answer[0];
        assert_eq!(stage.trace, answer.trace);
        assert!(answer.start <= stage.start && stage.start <= stage.end && stage.end <= answer.end, "{name}");
    }
    let number = |name: &str| answer.attributes[name].parse::<usize>().unwrap();
    assert!(number("prompt_tokens") > 30 && number("tokens") > 0 && number("pictures") == 1, "{answer:?}");
    assert_eq!(answer.attributes["finish_reason"], "Stop");
}

#[test]
fn a_span_of_each_stage_of_a_run() {
    let collector = Collector::start("200 OK");
    let (picture, question) = (example("01.png"), "How many objects are there?");
    let args =
        ["run", "--backend", "cpu", "--otlp", &collector.url, "--image", picture.to_str().unwrap(), question];
    let done = ocelli(&args);
    assert_eq!(done.well(), "two\n");
    // All has come once the command has ended.
    let came = collector.came();
    for (line, kind) in &came.requests {
        assert_eq!((&**line, &**kind), ("POST /v1/traces HTTP/1.1", "application/x-protobuf"));
    }
    assert_eq!(came.resource["service.name"], "ocelli");
    let run = one(&came, "run");
    assert!(run.parent.is_empty());
    for name in ["decode_image", "resize", "answer"] {
        let stage = one(&came, name);
        assert_eq!((&stage.parent, &stage.trace), (&run.id, &run.trace), "{name}");
    }
    let answer = one(&came, "answer");
    stages(&came, answer);
    let encode = one(&came, "encode");
    assert_eq!((&encode.parent, &*encode.attributes["pictures"]), (&answer.id, "1"));
    for name in ["tower", "connector"] {
        assert_eq!(one(&came, name).parent, encode.id, "{name}");
    }
    assert!(came.named("pass").is_empty());

    // With -v each pass too: one of the prompt, and one of each token but the last.
    let collector = Collector::start("200 OK");
    let child = command(&[&args[..4], &[&*collector.url], &args[5..], &["-v"]].concat()).spawn().unwrap();
    assert_eq!(ended(child).code, Some(0));
    let came = collector.came();
    let tokens: usize = one(&came, "answer").attributes["tokens"].parse().unwrap();
    assert_eq!(came.named("pass").len(), tokens);
}

#[test]
fn a_trace_of_each_row_of_a_batch() {
    let (collector, temp) = (Collector::start("200 OK"), Temp::new());
    let (first, second) = (example("01.png"), example("02.png"));
    let out = temp.path("out.jsonl");
    let args = ["batch", "--backend", "cpu", "--otlp", &collector.url, "--out", out.to_str().unwrap()];
    let prompts = ["--prompt", "How many objects are there?", "--prompt", "How many circles are there?"];
    let pictures = [first.to_str().unwrap(), second.to_str().unwrap()];
    ocelli(&[&args[..], &prompts, &pictures].concat()).well();
    let came = collector.came();
    let rows = came.named("row");
    assert_eq!(rows.len(), 4, "{came:?}");
    for row in &rows {
        let answers = came.named("answer");
        let answer: Vec<&&Span> = answers.iter().filter(|answer| answer.parent == row.id).collect();
        assert_eq!(answer.len(), 1);
        stages(&came, answer[0]);
        // The second prompt of a picture follows from the first, which has seen it.
        let second = row.attributes["id"].ends_with("#2");
        let seen = came.named("decode_image").iter().filter(|span| span.parent == row.id).count();
        assert_eq!((row.links, seen), (usize::from(second), usize::from(!second)), "{row:?}");
    }
}

#[test]
fn a_collector_that_fails_is_told_once() {
    let run = |url: &str| {
        let picture = example("01.png");
        ocelli(&["run", "--backend", "cpu", "--otlp", url, "--image", picture.to_str().unwrap(), "How many?"])
    };
    let collector = Collector::start("503 Service Unavailable");
    let refused = run(&collector.url);
    let absent = run("http://127.0.0.1:1");
    for (done, why) in [(refused, "503"), (absent, "127.0.0.1:1")] {
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(!done.stdout.trim().is_empty(), "{done:?}");
        let lines: Vec<&str> = done.stderr.lines().collect();
        assert!(lines.len() == 1 && lines[0].contains("--otlp: ") && lines[0].contains(why), "{done:?}");
    }
    for wrong in ["localhost:4318", "grpc://127.0.0.1:4317", ""] {
        run(wrong).fails(2, &["--otlp: expected a URL such as", wrong]);
    }
}
