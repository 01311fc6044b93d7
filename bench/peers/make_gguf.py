#!/usr/bin/env python3
"""Write the text decoder of a Llama-like checkpoint as GGUF files that llama.cpp's llama-bench runs.

    python bench/peers/make_gguf.py --model DIR --out DIR [--types bf16,q8_0,q4_0]

The same weights as Ocelli reads, without a vocabulary: llama-bench makes up its tokens.  With Q4_0 the token embedding and the head
are Q8_0, as llama-quantize writes rows that K-quants do not divide.  Needs numpy, safetensors, torch (to read
bf16) and gguf.
"""
import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

TYPES = {"bf16": gguf.GGMLQuantizationType.BF16, "f16": gguf.GGMLQuantizationType.F16,
         "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def interleaved(w, heads):
    """Rows of a query or key projection in the order of llama.cpp's rotation, which turns neighbours."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--types", default="bf16,q8_0,q4_0")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    text = config.get("text_config", config)
    heads = text["num_attention_heads"]
    heads_kv = text.get("num_key_value_heads", heads)
    rope = text.get("rope_parameters") or {}
    tensors = {}
    for file in sorted(args.model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as st:
            tensors.update((name, st.get_tensor(name)) for name in st.keys())
    prefix = next(name[: -len("embed_tokens.weight")] for name in tensors if name.endswith("embed_tokens.weight"))
    named = {"token_embd.weight": tensors[prefix + "embed_tokens.weight"],
             "output_norm.weight": tensors[prefix + "norm.weight"]}
    head = next((name for name in tensors if name.endswith("lm_head.weight")), None)
    if head and not text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)):
        named["output.weight"] = tensors[head]
    for layer in range(text["num_hidden_layers"]):
        for name, to in LAYER.items():
            w = tensors[f"{prefix}layers.{layer}.{name}.weight"]
            if to in ("attn_q", "attn_k"):
                w = interleaved(w, heads if to == "attn_q" else heads_kv)
            named[f"blk.{layer}.{to}.weight"] = w
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in args.types.split(","):
        writer = gguf.GGUFWriter(args.out / f"{kind}.gguf", "llama")
        writer.add_context_length(text["max_position_embeddings"])
        writer.add_embedding_length(text["hidden_size"])
        writer.add_block_count(text["num_hidden_layers"])
        writer.add_feed_forward_length(text["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(heads_kv)
        writer.add_rope_dimension_count(text.get("head_dim") or text["hidden_size"] // heads)
        writer.add_rope_freq_base(float(rope.get("rope_theta", text.get("rope_theta", 10000.0))))
        writer.add_layer_norm_rms_eps(float(text.get("rms_norm_eps", 1e-5)))
        writer.add_vocab_size(text["vocab_size"])
        writer.add_tokenizer_model("no_vocab")
        for name, w in named.items():
            values = np.ascontiguousarray(w.to(torch.float32).numpy())
            if values.ndim == 1:
                writer.add_tensor(name, values)
            else:
                of = "q8_0" if kind == "q4_0" and not name.startswith("blk.") else kind
                writer.add_tensor(name, gguf.quants.quantize(values, TYPES[of]), raw_dtype=TYPES[of])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        print(args.out / f"{kind}.gguf")


if __name__ == "__main__":
    main()
