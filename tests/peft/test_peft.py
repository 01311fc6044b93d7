"""An adapter that `ocelli train` wrote, read by peft: the logits are those of `ocelli` with the adapter merged."""

import json
import os
import pathlib
import subprocess

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"


def command(*args):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    done = subprocess.run([target / "release/ocelli", *map(str, args)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done


@pytest.mark.parametrize("name, kind, stored", [
    ("llama", "AutoModelForCausalLM", torch.bfloat16),
    ("smolvlm", "AutoModelForImageTextToText", torch.float32),
])
def test_peft_reads_an_adapter(tmp_path, name, kind, stored):
    rows, adapter, merged = tmp_path / "rows.jsonl", tmp_path / "adapter", tmp_path / "merged"
    texts = ["a ring above a star", "two squares", "a cross and a heart", "nothing at all"]
    rows.write_text("".join(json.dumps({"prompt": "What is there?", "text": text}) + "\n" for text in texts))
    command("train", "sft", "--model", GOLDEN / name, "--data", rows, "--lora", "r=4,alpha=8", "--rate", "1e-2", "--weight-decay", "0",
            "--steps", "5", "--batch", "2", "--out", adapter, "--quiet")
    command("train", "merge", "--model", GOLDEN / name, "--adapter", adapter, "--out", merged, "--quiet")

    base = getattr(transformers, kind).from_pretrained(GOLDEN / name, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 5, 9, 2, 7, 11, 3, 8]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        known = peft.PeftModel.from_pretrained(base, adapter).eval()
        loaded = peft.utils.load_peft_weights(str(adapter))
        found = peft.get_peft_model_state_dict(known)
        after = known(input_ids=ids).logits
        whole = known.merge_and_unload()
        for parameter in whole.parameters():
            parameter.data = parameter.data.to(stored).to(torch.float32)
        logits = whole(input_ids=ids).logits
    assert set(found) == set(loaded) and all(torch.equal(found[key].float(), loaded[key].float()) for key in found)
    assert (after - before).abs().max() > 1e-2, "the adapter changes nothing"

    reference = tmp_path / "reference"
    reference.mkdir()
    save_file({"input_ids": ids, "logits": logits.contiguous()}, reference / "golden.safetensors")
    command("verify", "--model", merged, "--reference", reference, "--backend", "cpu", "--dtype", "f32")
