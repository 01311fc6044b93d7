"""Hashes of what transformers renders with the chat templates of published checkpoints:

    venv/bin/python tests/golden/templates/checkpoints.py PUBLISHED > tests/golden/templates/checkpoints.json

PUBLISHED has a folder for each checkpoint, OWNER__NAME, with its chat_template.jinja, chat_template.json or tokenizer_config.json. The
templates are not ours to copy, so the tests read them from the folder that OCELLI_PUBLISHED names, and find their rows by their SHA-256.
Conversations, options and what a row says are those of published.py; in place of `text` a row has its SHA-256.
"""

import hashlib
import json
import sys
from pathlib import Path

import published


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def template_of(path):
    if path.suffix == ".jinja":
        return path.read_text(encoding="utf-8")
    if path.suffix == ".json" and path.name.startswith(("chat_template", "tokenizer_config", "processor_config")):
        return json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    return None


def main():
    templates = {}
    for path in sorted(Path(sys.argv[1]).glob("*/*")):
        template = template_of(path)
        if isinstance(template, str):
            entry = templates.setdefault(sha256(template), {"files": []})
            entry["files"].append(f"{path.parent.name}/{path.name}")
            if "rows" not in entry:
                entry["rows"] = published.renderings(template)
                for row in entry["rows"]:
                    row.pop("forms", None)
                    if row["text"] is not None:
                        row["text"] = sha256(row["text"])
    lines = []
    for key, entry in sorted(templates.items(), key=lambda pair: pair[1]["files"]):
        rows = ",\n".join("   " + json.dumps(row, ensure_ascii=False) for row in entry["rows"])
        lines.append(f'  "{key}": {{"files": {json.dumps(entry["files"])}, "rows": [\n{rows}\n  ]}}')
    conversations = json.dumps(published.conversations(), ensure_ascii=False)
    print('{\n "conversations": ' + conversations + ',\n "templates": {\n' + ",\n".join(lines) + "\n }\n}")


main()
