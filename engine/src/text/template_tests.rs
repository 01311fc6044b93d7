use serde_json::json;

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
    let string = Message { role: "user".into(), content: Content::Text("hi".into()), more: Map::new() };
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

/// The true reason is kept, whatever form the messages come in.
#[test]
fn errors_are_those_of_the_template() {
    let parts =
        "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}";
    let text = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}";
    let options = RenderOptions::default();
    let user = [Message::user(1, "hi")];
    let system = [Message::text("system", "Be brief."), Message::user(1, "hi")];
    for (body, with_images) in [(parts, true), (text, false)] {
        let picky = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}";
        let t = template(&format!("{picky}{body}"));
        assert_eq!(
            t.render(&user, &options).unwrap_err().to_string(),
            "test: chat template: system first (line 1)"
        );
        let answer = t.render(&system, &options);
        if with_images {
            assert_eq!(answer.unwrap(), "Be brief.<image>hi");
        } else {
            assert!(matches!(answer, Err(TextError::NoImages { .. })));
        }
        assert_eq!(t.accepts_images(), with_images);
        let t = template(&format!("{{% set x = '5'.nosuch(3) %}}\n{body}"));
        let e = t.render(&user, &options).unwrap_err().to_string();
        assert_eq!(e, "test: chat template: unknown method: string has no method named nosuch (line 1)");
        let t = template(&format!("{body}\n{{% set x = '5'.nosuch(3) %}}"));
        let e = t.render(&[Message::user(0, "hi")], &options).unwrap_err().to_string();
        assert!(e.ends_with("no method named nosuch (line 2)"), "{e}");
        let t = template(&format!("{{{{ '5'.zfill(3) }}}}{body}"));
        assert!(t.render(&[Message::user(0, "hi")], &options).unwrap().starts_with("005"));
    }
    let refuses =
        template("{% if messages[0].content is not string %}{{ raise_exception('no') }}{% endif %}x");
    assert_eq!(refuses.render(&user, &options).unwrap_err().to_string(), "test: chat template: no (line 1)");
    let e = refuses.render(&[], &options).unwrap_err().to_string();
    assert_eq!(e, "test: chat template: undefined value (line 1)");
}

/// Text that is changed, shown under a condition, or printed with the message around it.
#[test]
fn text_is_seen_however_it_is_shown() {
    let options = RenderOptions::default();
    let image = [Message::user(1, "hi there")];
    let plain = [Message::user(0, "hi there")];
    let of_parts = |show: &str| {
        template(&format!(
            "{{% for m in messages %}}{{% for p in m['content'] %}}{{% if p.type == 'image' %}}<i>{{% elif loop.index0 > 0 or true %}}{show}{{% endif %}}{{% endfor %}}{{% endfor %}}"
        ))
    };
    for (show, shown) in [
        ("{{ p.text | upper }}", "HI THERE"),
        ("{{ p.text.title() }}", "Hi There"),
        ("{{ p.text | replace(' ', '_') }}", "hi_there"),
        ("{{ p.text | tojson }}", "\"hi there\""),
        ("{{ p.text | trim }}", "hi there"),
    ] {
        let t = of_parts(show);
        assert_eq!(t.render(&image, &options).unwrap(), format!("<i>{shown}"), "{show}");
        assert_eq!(t.render(&plain, &options).unwrap(), shown, "{show}");
        assert!(t.accepts_images());
        let t = template(&show.replace("p.text", "messages[0].content"));
        assert_eq!(t.render(&plain, &options).unwrap(), shown, "{show}");
        let e = t.render(&image, &options).unwrap_err();
        assert!(matches!(e, TextError::NoImages { .. }), "{show}: {e}");
    }
    let after = template(
        "{% for m in messages %}{% set ns = namespace(image=false) %}{% for p in m.content %}{% if p.type == 'image' %}<i>{% set ns.image = true %}{% elif ns.image %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}",
    );
    assert_eq!(after.render(&image, &options).unwrap(), "<i>hi there");
    assert!(after.accepts_images());
    let dumped = template("{% for m in messages %}{{ m | tojson }}{% endfor %}");
    let json = r#"{"role": "user", "content": "hi there"}"#;
    let string =
        [Message { role: "user".into(), content: Content::Text("hi there".into()), more: Map::new() }];
    assert_eq!(dumped.render(&plain, &options).unwrap(), json);
    assert_eq!(dumped.render(&string, &options).unwrap(), json);
    // A message that the template leaves out goes as it was given.
    let silent = template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
    let two = [Message::text("system", "x"), Message::text("user", "y")];
    assert_eq!(silent.render(&two, &options).unwrap(), "y");
}

#[test]
fn every_role_gets_its_form() {
    let options = RenderOptions::default();
    // System and assistant as they are, parts of the user.
    let t = template(
        "{% for m in messages %}{% if m.role == 'user' %}{% for p in m.content %}{{ p.text or '<i>' }}{% endfor %}{% else %}[{{ m.content | trim }}]{% endif %}{% endfor %}",
    );
    let turns = [
        Message::text("system", " s "),
        Message::user(1, "a"),
        Message::text("assistant", "b"),
        Message::user(0, "c"),
        Message { role: "user".into(), content: Content::Text("d".into()), more: Map::new() },
    ];
    assert_eq!(t.render(&turns, &options).unwrap(), "[s]<i>a[b]cd");
    assert!(t.accepts_images());
    // Texts that look like parts are still texts.
    let list = "[{'type': 'text', 'text': 'S'}]";
    let t = template(
        "{% for m in messages %}{% for p in m.content %}{{ p.text or '<i>' }}{% endfor %}{% endfor %}",
    );
    assert_eq!(t.render(&[Message::text("user", list)], &options).unwrap(), list);
}

#[test]
fn line_breaks_of_a_template_are_those_of_python() {
    let source = "{% for m in messages %}\n  {% if true %}\n- {{ m.role }}\n  {% endif %}\n{% endfor %}\n\nend{{ 'a\\r\\nb' }}\n";
    let expected = render(source);
    assert_eq!(expected, "- user\n\nenda\r\nb");
    for other in ["\r\n", "\r"] {
        assert_eq!(render(&source.replace('\n', other)), expected, "{other:?}");
    }
    // Those of a message stay.
    let t = template("{{ messages[0].content }}");
    let text = "a\r\nb\rc";
    assert_eq!(t.render(&[Message::user(0, text)], &RenderOptions::default()).unwrap(), text);
}

#[test]
fn images_in_text_alone() {
    let t = template("{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}");
    let mut options = RenderOptions { image_text: Some("<image>\n".into()), ..RenderOptions::default() };
    let turns = [Message::text("system", "s"), Message::user(2, "hi")];
    assert_eq!(t.render(&turns, &options).unwrap(), "system:s\nuser:<image>\n<image>\nhi\n");
    options.image_text = None;
    assert!(matches!(t.render(&turns, &options), Err(TextError::NoImages { .. })));
}

#[test]
fn variables_are_assigned() {
    let mut options = RenderOptions::default();
    for assignment in [
        "thinking=true",
        "enable_thinking=False",
        "n = 3",
        "name=a b=c",
        "list=[1]",
        "no=None",
        "date=26 Jul",
    ] {
        options.assign(assignment).unwrap();
    }
    let t = template("{{ [thinking, enable_thinking, n, name, list, no, date, tools] }}");
    assert_eq!(
        t.render(&[Message::user(0, "x")], &options).unwrap(),
        "[True, False, 3, 'a b=c', [1], None, '26 Jul', None]"
    );
    let e = options.assign("=x").unwrap_err().to_string();
    assert_eq!(e, "template variable: expected NAME=VALUE, found \"=x\"");
    assert!(options.assign("x").is_err());
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
