use super::*;

fn template(source: &str) -> ChatTemplate {
    let Json::Object(tokens) = json!({"bos_token": "<s>", "eos_token": "</s>"}) else { unreachable!() };
    ChatTemplate::with_variables(source, "test".into(), tokens).unwrap()
}

fn render(source: &str) -> String {
    template(source).render(&[Message::user(0, "hi")], &RenderOptions::default()).unwrap()
}

fn fails(source: &str) -> String {
    template(source).render(&[Message::user(0, "hi")], &RenderOptions::default()).unwrap_err().to_string()
}

#[test]
fn environment_of_transformers() {
    assert_eq!(
        render("{{ bos_token }}|{{ eos_token }}|{{ unknown }}|{{ none }}|{{ true }}"),
        "<s>|</s>||None|True"
    );
    assert_eq!(render("  {% if true %}\nx\n  {% endif %}\ny\n"), "x\ny");
    assert_eq!(
        render(
            "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "02"
    );
    assert_eq!(
        render(
            "{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
        ),
        "6"
    );
    assert_eq!(
        render("{{ ' a,b '.strip().split(',')[-1].upper() }}{{ 'x' in 'xyz' }}{{ 'ab'[::-1] }}"),
        "BTrueba"
    );
    assert_eq!(render("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}"), "b1a2");
    assert_eq!(render("{{ {'a': '<é>', 'b': [1, 2]} | tojson }}"), r#"{"a": "<é>", "b": [1, 2]}"#);
    assert_eq!(render("{{ [1] | tojson(indent=4) }}"), "[\n    1\n]");
    assert_eq!(render("{{ {'a': 1} | tojson(separators=(',', ':')) }}"), r#"{"a":1}"#);
    assert_eq!(render("{{ [1, 'x', none] }}{{ tools is none }}"), "[1, 'x', None]True");
    assert_eq!(
        render("{{ 'a' + 'b' ~ 1 }}{{ 'hello'|capitalize }}{{ messages|length }}{{ messages[0].role }}"),
        "ab1Hello1user"
    );
    assert_eq!(render("{%- generation -%}\n x {% endgeneration %}"), "x ");
    assert_eq!(
        render("{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}{{ x is defined }}"),
        "TrueTrueTrueFalse"
    );
    assert_eq!(render("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}"), "1213");
    let year: i32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year >= 2024, "{year}");
}

#[test]
fn errors_are_one_line() {
    assert_eq!(
        fails("{{ raise_exception('Roles must\nalternate') }}"),
        "test: chat template: Roles must alternate (line 1)"
    );
    assert!(fails("{{ strftime_now('%!') }}").contains("invalid format"));
    assert!(fails("\n{{ a.b.c }}").contains("(line 2)"));
    assert!(
        fails("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
            .contains("fuel")
    );
    let e = ChatTemplate::with_variables("{% if %}", "f.jinja".into(), Map::new()).unwrap_err().to_string();
    assert!(e.starts_with("f.jinja: chat template: syntax error"), "{e}");
}

#[test]
fn content_goes_in_the_form_that_the_template_reads() {
    let parts = template(
        "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}",
    );
    let text = template("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}");
    let both = template(
        "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endif %}{% endfor %}",
    );
    let options = RenderOptions::default();
    let string = Message { role: "user".into(), content: Content::Text("hi".into()) };
    let listed = Message::user(0, "hi");
    assert_eq!(parts.render(std::slice::from_ref(&string), &options).unwrap(), "hi");
    assert_eq!(parts.render(&[Message::user(2, "hi")], &options).unwrap(), "<image><image>hi");
    assert_eq!(text.render(std::slice::from_ref(&string), &options).unwrap(), "user: hi");
    assert_eq!(text.render(std::slice::from_ref(&listed), &options).unwrap(), "user: hi");
    assert!(!text.accepts_images() && parts.accepts_images() && both.accepts_images());
    assert_eq!(
        text.render(&[Message::user(1, "hi")], &options).unwrap_err().to_string(),
        "test: chat template: takes text alone, found a message with an image"
    );
    assert_eq!(both.render(&[string], &options).unwrap(), "Shi");
    assert_eq!(both.render(&[listed], &options).unwrap(), "hi");
}

#[test]
fn extra_variables_and_messages_as_json() {
    let messages: Vec<Message> =
        serde_json::from_value(json!([{"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]))
            .unwrap();
    assert_eq!(messages[0], Message::user(1, "a"));
    assert_eq!((messages[0].images(), messages[1].images()), (1, 0));
    let mut options = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
    options.extra.insert("thinking".into(), json!(true));
    let t = template("{{ add_generation_prompt }}{{ thinking }}");
    let messages = &[Message::user(0, "x")];
    assert_eq!(t.render(messages, &options).unwrap(), "FalseTrue");
}
