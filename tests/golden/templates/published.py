"""Renders chat templates (the files in published/) with transformers:

    venv/bin/python tests/golden/templates/published.py > tests/golden/templates/published.json

llama32_style.jinja is written for these tests, in the manner of a published model. Templates of published models, put beside it,
are rendered too, and the tests then compare them.

A conversation is written once with strings and once with lists of parts for its messages of text alone. transformers
renders each form as it is; a form is right if every text is in the prompt and no list was printed. `text` is the first
right one, with the least roles changed from what was given; `null` means that
no form is, and `error` is what the form given says.
"""

import itertools
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the \"weather\"", "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Where"}}, "required": ["place"]}},
}


def image(*texts):
    return [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]


CONVERSATIONS = {
    "one": [("user", "Hello there! ")],
    "system": [("system", " Be brief.\n"), ("user", "What's 1 < 2?"), ("assistant", "That is <so>."), ("user", "Ünïcödé 日本 \"quoted\"")],
    "image": [("user", image("Describe it."))],
    "system_image": [("system", "Look well."), ("user", image("Which colour?"))],
    "turns": [("user", image("First?")), ("assistant", "One."), ("user", "Second, without?"), ("assistant", "Two."), ("user", [{"type": "text", "text": "Third: "}, {"type": "image"}, {"type": "image"}, {"type": "text", "text": "both?"}])],
}
OPTIONS = [{}, {"add_generation_prompt": False}, {"tools": [TOOL]}, {"enable_thinking": True}, {"enable_thinking": False}]


def has_image(content):
    return not isinstance(content, str) and any(part["type"] == "image" for part in content)


def written(conversation, forms):
    """Messages in the form that is chosen for each role."""
    messages = []
    for role, content in conversation:
        if isinstance(content, str) and forms.get(role) == "parts":
            content = [{"type": "text", "text": content}]
        messages.append({"role": role, "content": content})
    return messages


def render(template, messages, options):
    options = {"add_generation_prompt": True} | options
    tools = options.pop("tools", None)
    return render_jinja_template([messages], tools=tools, chat_template=template, **TOKENS, **options)[0][0]


def shows(prompt, conversation):
    if "'type': 'text'" in prompt or '"type": "text"' in prompt or "'type': 'image'" in prompt:
        return False
    texts = [content if isinstance(content, str) else part.get("text", "") for _, content in conversation for part in ([{}] if isinstance(content, str) else content)]
    return all(text.strip() in prompt for text in texts)


def right(template, conversation, given, options):
    roles = list(dict.fromkeys(role for role, content in conversation if not has_image(content)))
    forms = [dict(zip(roles, form)) for form in itertools.product(("string", "parts"), repeat=len(roles))]
    forms.sort(key=lambda form: sum(kind != given for kind in form.values()))
    errors = []
    for form in forms:
        try:
            prompt = render(template, written(conversation, form), options)
        except Exception as error:
            errors.append(str(error))
            continue
        if shows(prompt, conversation):
            return {"text": prompt, "forms": form}
    if len(errors) < len(forms):
        return {"text": None, "error": "some text is not shown in any form"}
    return {"text": None, "error": errors[0]}


def renderings(template):
    """Each conversation in each form, with the options that change what comes of it."""
    rows = []
    for (name, conversation), given in itertools.product(CONVERSATIONS.items(), ("string", "parts")):
        plain = None
        for options in OPTIONS if name in ("system", "image") else [{}]:
            result = right(template, conversation, given, options)
            # Most templates have no switches: what they do not change is not worth a row.
            if plain is None or result != plain:
                rows.append({"conversation": name, "given": given, "options": options} | result)
            plain = plain or result
    return rows


def conversations():
    roles = {role for conversation in CONVERSATIONS.values() for role, _ in conversation}
    return {
        name: {given: written(conversation, dict.fromkeys(roles, given)) for given in ("string", "parts")}
        for name, conversation in CONVERSATIONS.items()
    }


def main():
    rows = []
    for path in sorted(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "published").glob("*.jinja")):
        rows += [{"template": path.stem} | row for row in renderings(path.read_text(encoding="utf-8"))]
    print(json.dumps({"tokens": TOKENS, "conversations": conversations(), "rows": rows}, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
