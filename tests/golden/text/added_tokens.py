"""How transformers reads added tokens that the files around tokenizer.json declare with other flags:

    venv/bin/python tests/golden/text/added_tokens.py > tests/golden/text/added_tokens.json

Each case is a set of files put beside qwen3_vl/tokenizer.json and llava/tokenizer.json, to whose added tokens `<mark>`
and `<plain>` are added first (the one special, the other not; both without further flags).
"""

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

PROMPTS = ["a <mark> b", "a<mark>b", "the  <mark>  <plain>  house", "x <plain> y", "MARK <MARK> <plain>s", "<plain><mark> The A", " A A"]


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False} | flags


def decoder(base, **changes):
    """added_tokens_decoder with the tokens of tokenizer.json, some of them changed."""
    ids = {added["content"]: added for added in base["added_tokens"]}
    out = {}
    for content, flags in changes.items():
        content = f"<{content}>"
        out[str(ids[content]["id"])] = {key: value for key, value in ids[content].items() if key != "id"} | flags
    return out


def cases(base):
    yield "as it is", {}
    for flags in ({"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"normalized": True}, {"special": False}, {"special": True}, {"special": True, "lstrip": True, "rstrip": True}):
        yield f"mark {flags}", {"tokenizer_config.json": {"added_tokens_decoder": decoder(base, mark=flags)}}
        yield f"plain {flags}", {"tokenizer_config.json": {"added_tokens_decoder": decoder(base, plain=flags)}}
    both = decoder(base, mark={"lstrip": True}, plain={"lstrip": True})
    yield "named", {"tokenizer_config.json": {"added_tokens_decoder": both, "mark_token": "<mark>", "plain_token": "<plain>"}}
    yield "unk", {"tokenizer_config.json": {"added_tokens_decoder": both, "unk_token": "<plain>"}}
    yield "extra", {"tokenizer_config.json": {"added_tokens_decoder": both, "extra_special_tokens": ["<mark>", "<plain>"]}}
    yield "additional", {"tokenizer_config.json": {"added_tokens_decoder": both, "additional_special_tokens": ["<mark>", "<plain>"]}}
    yield "extra map", {"tokenizer_config.json": {"added_tokens_decoder": both, "extra_special_tokens": {"m_token": "<mark>", "p_token": "<plain>"}}}
    yield "named without decoder", {"tokenizer_config.json": {"mark_token": "<mark>", "plain_token": "<plain>"}}
    yield "named, the same flags", {"tokenizer_config.json": {"added_tokens_decoder": decoder(base, plain={}), "plain_token": "<plain>"}}
    yield "map without decoder", {"special_tokens_map.json": {"unk_token": token("<plain>", lstrip=True), "sep_token": "<mark>", "cls_token": "A"}}
    yield "map beside a decoder", {"tokenizer_config.json": {"added_tokens_decoder": both}, "special_tokens_map.json": {"unk_token": token("<plain>", lstrip=True), "cls_token": "A"}}
    yield "word as token", {"tokenizer_config.json": {"cls_token": "A"}}
    yield "word as extra", {"tokenizer_config.json": {"extra_special_tokens": ["A"]}}
    yield "word declared", {"tokenizer_config.json": {"added_tokens_decoder": {str(base["model"]["vocab"]["A"]): token("A", lstrip=True)}}}
    yield "legacy", {"added_tokens.json": {"<plain>": next(added["id"] for added in base["added_tokens"] if added["content"] == "<plain>")}}


def main():
    here = Path(__file__).parent
    rows = []
    for family in ("qwen3_vl", "llava"):
        base = json.loads((here / family / "tokenizer.json").read_text(encoding="utf-8"))
        next_id = max([*base["model"]["vocab"].values(), *(added["id"] for added in base["added_tokens"])]) + 1
        base["added_tokens"] += [{"id": next_id} | token("<mark>", special=True), {"id": next_id + 1} | token("<plain>")]
        for name, files in cases(base):
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                (folder / "tokenizer.json").write_text(json.dumps(base), encoding="utf-8")
                for file, content in ({"tokenizer_config.json": {}} | files).items():
                    (folder / file).write_text(json.dumps(content), encoding="utf-8")
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
                ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
                shown = [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
            rows.append({"family": family, "case": name, "files": files, "ids": ids, "shown": shown})
    print(json.dumps({"mark": token("<mark>", special=True), "plain": token("<plain>"), "prompts": PROMPTS, "rows": rows}, ensure_ascii=False, separators=(",", ":")))


main()
