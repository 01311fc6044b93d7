#!/usr/bin/env python3
"""Write the dual encoder as its training begins: the tower of the demo model, all else drawn from a seed.

    start.py OUT [--seed N]

OUT gets a folder in the layout of transformers' `SiglipModel` with configuration, tokenizer and processor. Matrices are drawn as
transformers draws them: tables by the inverse root of their width, products within bounds of their sizes.
"""
import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "demo"
sys.path.insert(0, str(DEMO))
import scenes

WIDE, INNER, HEADS, LAYERS, TEXT = 128, 512, 4, 4, 32

# In the order of their ids, behind the end of a text and what stands for all other words.
WORDS = ["</s>", "<unk>", ",", "a", "an", "and", "the", "to", "of", "with", "left", "right", "above", "below", "under", "over",
         "number", *scenes.SIZES, *scenes.COLOURS, *scenes.SHAPES, *scenes.PLURAL.values(), *"0123456789"]


def files():
    layers = {"attention_dropout": 0.0, "hidden_act": "gelu_pytorch_tanh", "hidden_size": WIDE, "intermediate_size": INNER,
              "layer_norm_eps": 1e-6, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    config = {
        "architectures": ["SiglipModel"], "dtype": "bfloat16", "initializer_factor": 1.0, "model_type": "siglip",
        "text_config": {**layers, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": TEXT,
                        "model_type": "siglip_text_model", "pad_token_id": 0, "projection_size": WIDE, "vocab_size": len(WORDS)},
        "vision_config": {**layers, "image_size": 96, "model_type": "siglip_vision_model", "num_channels": 3, "patch_size": 8,
                          "vision_use_head": True},
    }
    special = [{"id": i, "content": WORDS[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i in (0, 1)]
    split = lambda pattern, behavior: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        # Words, and each digit and mark by itself.
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(r"\s+", "Removed"), split(r"[0-9]|[^\w\s]", "Isolated")]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
                           "special_tokens": {"</s>": {"id": "</s>", "ids": [0], "tokens": ["</s>"]}}},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }
    tokenizer_config = {"clean_up_tokenization_spaces": False, "eos_token": "</s>", "extra_special_tokens": [],
                        "model_input_names": ["input_ids"], "model_max_length": TEXT, "pad_token": "</s>",
                        "processor_class": "SiglipProcessor", "tokenizer_class": "TokenizersBackend", "unk_token": "<unk>"}
    half = [0.5, 0.5, 0.5]
    processor = {"image_processor": {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
                                     "image_mean": half, "image_processor_type": "SiglipImageProcessor", "image_std": half,
                                     "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 96, "width": 96}},
                 "processor_class": "SiglipProcessor"}
    return {"config.json": config, "tokenizer.json": tokenizer, "tokenizer_config.json": tokenizer_config,
            "processor_config.json": processor}


def read(path):
    """Tensors of a safetensors file in bfloat16, as float32."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for name, info in json.loads(data[8:8 + length]).items():
        if name != "__metadata__":
            first, last = (8 + length + at for at in info["data_offsets"])
            bits = np.frombuffer(data[first:last], "<u2").astype(np.uint32) << 16
            yield name, bits.view(np.float32).reshape(info["shape"])


def write(path, tensors):
    """The same, rounded to bfloat16."""
    header, blobs, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, values in sorted(tensors.items()):
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        blob = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [end, end + len(blob)]}
        blobs.append(blob)
        end += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def drawn(rng):
    """All tensors but those of the picture tower."""
    tensors = {"logit_scale": np.array([np.log(10.0)]), "logit_bias": np.array([-10.0])}
    normal = lambda *shape, std: rng.normal(0, std, shape)

    def product(name, n, k):
        bound = np.sqrt(6 / (n + k))
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = rng.uniform(-bound, bound, (n, k)), np.zeros(n)

    def norm(name):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(WIDE), np.zeros(WIDE)

    tensors["text_model.embeddings.token_embedding.weight"] = normal(len(WORDS), WIDE, std=WIDE ** -0.5)
    tensors["text_model.embeddings.position_embedding.weight"] = normal(TEXT, WIDE, std=WIDE ** -0.5)
    for i in range(LAYERS):
        layer = f"text_model.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            product(f"{layer}.self_attn.{name}", WIDE, WIDE)
        product(f"{layer}.mlp.fc1", INNER, WIDE)
        product(f"{layer}.mlp.fc2", WIDE, INNER)
        norm(f"{layer}.layer_norm1")
        norm(f"{layer}.layer_norm2")
    norm("text_model.final_layer_norm")
    product("text_model.head", WIDE, WIDE)
    head = "vision_model.head"
    product("in_proj", 3 * WIDE, WIDE)
    tensors[f"{head}.attention.in_proj_weight"] = tensors.pop("in_proj.weight")
    tensors[f"{head}.attention.in_proj_bias"] = tensors.pop("in_proj.bias")
    product(f"{head}.attention.out_proj", WIDE, WIDE)
    product(f"{head}.mlp.fc1", INNER, WIDE)
    product(f"{head}.mlp.fc2", WIDE, INNER)
    norm(f"{head}.layernorm")
    bound = np.sqrt(6 / (2 * WIDE))
    tensors[f"{head}.probe"] = rng.uniform(-bound, bound, (1, 1, WIDE))
    return tensors


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = drawn(np.random.default_rng([13, args.seed]))
    prefix = "model.vision_model."
    tensors |= {name.removeprefix("model."): values for name, values in read(DEMO / "model" / "model.safetensors")
                if name.startswith(prefix)}
    write(args.out / "model.safetensors", tensors)
    for name, content in files().items():
        (args.out / name).write_text(json.dumps(content, indent=1) + "\n")
    print(f"{args.out}: {sum(v.size for v in tensors.values())} parameters in {len(tensors)} tensors, {len(WORDS)} words")


if __name__ == "__main__":
    main()
