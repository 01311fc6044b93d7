#!/usr/bin/env python3
"""Build what adapters are held to: an adapter that PEFT wrote for the tiny SmolVLM of `train/`, its loss, logits and gradients.

    make_lora.py [--out DIR] [--seed N]

Needs torch, transformers, safetensors and peft.  `DIR/lora/` gets `adapter_config.json` and `adapter_model.safetensors` as
`save_pretrained` lays them out, with a rank of its own for one kind of matrix and an alpha for another, and `train.safetensors`:
of the batch of `train/smolvlm`, `loss` (float64), `logits` of the rows that are learnt, and `grad.<name>` for each matrix, by
autograd in float64, as make_train.py has them.
"""
import argparse
import copy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import make_train as train

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "train")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    source = HERE / "train" / "smolvlm"
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=r".*text_model\.layers\..*\.(q_proj|v_proj|gate_proj|down_proj)", rank_pattern={"v_proj": 2},
        alpha_pattern={"down_proj": 1})
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            # Zeros tell nothing of the gradient of A.
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = "train/smolvlm"
    folder = args.out / "lora"
    adapted.save_pretrained(folder)
    batch = {k: v for k, v in load_file(source / "train.safetensors").items()
             if k in ("input_ids", "attention_mask", "pixel_values", "labels")}
    exact = copy.deepcopy(adapted).double()
    for module in exact.modules():
        if hasattr(module, "inv_freq"):
            c = module.config
            module.inv_freq = c.rope_parameters["rope_theta"] ** -(torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    with train.Float64():
        logits, tokens = train.smolvlm_run(exact, wide)
        loss = torch.nn.functional.cross_entropy(logits, tokens)
        loss.backward()
    stored = load_file(folder / "adapter_model.safetensors")
    tensors = {"loss": loss.detach().reshape(1), "logits": logits.detach().float()}
    for name, parameter in exact.named_parameters():
        if "lora_" in name:
            plain = name.replace(".default", "")
            assert stored[plain].shape == parameter.shape and parameter.grad is not None, plain
            tensors[f"grad.{plain}"] = parameter.grad.float()
    assert len(tensors) == 2 + len(stored)
    save_file({k: tensors[k].contiguous() for k in sorted(tensors)}, folder / "train.safetensors")
    (folder / "README.md").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
    print(f"loss {float(loss.detach()):.6f}, {len(stored)} matrices, {sum(f.stat().st_size for f in folder.iterdir())} bytes")


if __name__ == "__main__":
    main()
