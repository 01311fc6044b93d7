"""Hashes of what transformers renders with the chat templates of published checkpoints:

    venv/bin/python tests/golden/templates/checkpoints.py PUBLISHED > tests/golden/templates/checkpoints.json

PUBLISHED has a folder for each checkpoint, OWNER__NAME, with its chat_template.jinja, chat_template.json or tokenizer_config.json. The
templates are not ours to copy, so the tests read them from the folder that OCELLI_PUBLISHED names, and find their rows by their SHA-256.
Conversations and options are those of published.py. A row is a conversation, its form, the number of its options, and the beginning of
the SHA-256 of the text, or null and the error.
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
                for i, row in enumerate(entry["rows"]):
                    said = [None, row["error"]] if row["text"] is None else [sha256(row["text"])[:16]]
                    entry["rows"][i] = [row["conversation"], row["given"], published.OPTIONS.index(row["options"]), *said]
    lines = []
    for key, entry in sorted(templates.items(), key=lambda pair: pair[1]["files"]):
        rows = json.dumps(entry["rows"], ensure_ascii=False, separators=(",", ":"))
        lines.append(f'  "{key}": {{"files": {json.dumps(entry["files"])}, "rows": {rows}}}')
    conversations = json.dumps(published.conversations(), ensure_ascii=False)
    options = json.dumps(published.OPTIONS)
    print('{\n "options": ' + options + ',\n "conversations": ' + conversations + ',\n "templates": {\n' + ",\n".join(lines) + "\n }\n}")


main()
