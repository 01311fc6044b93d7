//! Answers of a given form.

use std::thread;

use serde_json::{Value, json};

use crate::http::{Server, data, example, question, with};

const QUESTION: &str = "How many objects are there?";

fn asked(more: Value) -> Value {
    with(question(&[data(&example("01.png"))], QUESTION), with(json!({"temperature": 0}), more))
}

fn text(reply: &Value) -> String {
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
}

fn count() -> Value {
    json!({
        "type": "object", "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["count"], "additionalProperties": false,
    })
}

fn schema(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "form", "strict": true, "schema": schema}}})
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let server = Server::start(&[]);
    let reply = server.chat(&asked(schema(&count()))).json(200);
    let value: Value = serde_json::from_str(&text(&reply)).unwrap();
    assert!(value["count"].is_u64() && value.as_object().unwrap().len() == 1, "{value}");
    assert_eq!(text(&reply), format!("{{\"count\": {}}}", value["count"]));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");

    // Among all that it knows to say the model still chooses what it sees.
    let numbers = ["zero", "one", "two", "three", "four"];
    let reply = server.chat(&asked(json!({"guided_choice": numbers}))).json(200);
    assert_eq!((text(&reply).as_str(), &reply["choices"][0]["finish_reason"]), ("two", &json!("stop")));
    // It cannot say that here.
    let reply = server.chat(&asked(json!({"structured_outputs": {"choice": ["one", "four"]}}))).json(200);
    assert!(["one", "four"].contains(&&*text(&reply)), "{reply}");
    let reply = server.chat(&asked(json!({"guided_regex": "[a-z]{3} [0-9]{2}"}))).json(200);
    let found = text(&reply);
    let bytes = found.as_bytes();
    assert!(bytes.len() == 6 && bytes[3] == b' ' && bytes[4..].iter().all(u8::is_ascii_digit), "{found}");
    let grammar = "start: \"red\" | \"blue\" \"!\"+\n";
    let reply = server.chat(&asked(json!({"guided_grammar": grammar, "max_tokens": 20}))).json(200);
    assert!(text(&reply) == "red" || text(&reply).trim_end_matches('!') == "blue", "{reply}");

    // Cut where there is no room for the end.
    let reply = server.chat(&asked(with(schema(&count()), json!({"max_tokens": 3})))).json(200);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(serde_json::from_str::<Value>(&text(&reply)).is_err(), "{reply}");

    // Drawn at random, in pieces, and several at once.
    for seed in 0..4 {
        let drawn = json!({"temperature": 1.5, "seed": seed, "n": 2, "stream": true});
        let events = server.chat(&with(asked(schema(&count())), drawn)).events();
        for number in 0..2 {
            let of = |event: &&Value| event["choices"][0]["index"] == number;
            let pieces =
                events.iter().filter(of).filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
            let whole: String = pieces.collect();
            let value: Value =
                serde_json::from_str(&whole).unwrap_or_else(|error| panic!("{error}: {whole}"));
            assert!(value["count"].as_u64().unwrap() < 100, "{value}");
        }
    }
    let asked =
        json!({"prompt": "Count", "guided_regex": "(ab|c)+d", "max_tokens": 60, "temperature": 1, "seed": 3});
    let reply = server.post("/v1/completions", &asked).json(200);
    let whole = reply["choices"][0]["text"].as_str().unwrap().to_owned();
    let left = whole.trim_start().replace("ab", "").replace('c', "");
    assert!(left == "d" || reply["choices"][0]["finish_reason"] == "length", "{reply}");
}

/// A form of its own for each number.
fn of_number(number: usize) -> Value {
    let name = format!("value_{number}");
    let of = match number % 4 {
        0 => json!({"type": "integer", "minimum": 0, "maximum": 10 + number}),
        1 => json!({"enum": ["red", "green", format!("shade {number}")]}),
        2 => {
            json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1 + number / 4})
        }
        _ => json!({"type": "string", "pattern": format!("^[a-f]{{{},{}}}$", 1 + number / 4, 4 + number)}),
    };
    json!({"type": "object", "properties": {name.clone(): of}, "required": [name], "additionalProperties": false})
}

#[test]
fn a_crowd_of_forms_and_free_answers_is_each_alone() {
    let requests: Vec<Value> = (0..32)
        .map(|number| {
            let name = ["01.png", "02.png", "03.png"][number % 3];
            let temperature = [0.0, 1.0, 0.7][number % 3];
            let draws = json!({"temperature": temperature, "seed": number, "max_tokens": 40});
            let free = with(question(&[data(&example(name))], QUESTION), draws);
            match number % 2 {
                0 => with(free, schema(&of_number(number / 2))),
                _ => with(free, json!({"ignore_eos": true})),
            }
        })
        .collect();
    let choice = |server: &Server, request: &Value| server.chat(request).json(200)["choices"][0].clone();
    // Also where requests wait for room, and give back what they have.
    for limits in [&[][..], &["--kv-tokens", "512"]] {
        let alone = Server::start(&[]);
        let expected: Vec<Value> = requests.iter().map(|request| choice(&alone, request)).collect();
        let crowd = Server::start(limits);
        let found: Vec<Value> = thread::scope(|scope| {
            let all: Vec<_> =
                requests.iter().map(|request| scope.spawn(|| choice(&crowd, request))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert_eq!(expected, found, "request {number}, {limits:?}");
        }
        for (number, choice) in found.iter().enumerate().step_by(2) {
            let content = choice["message"]["content"].as_str().unwrap();
            let name = format!("value_{}", number / 2);
            match serde_json::from_str::<Value>(content) {
                Ok(value) => assert!(!value[&name].is_null(), "{content}"),
                Err(_) => assert_eq!(choice["finish_reason"], "length", "{content}"),
            }
        }
    }
}
