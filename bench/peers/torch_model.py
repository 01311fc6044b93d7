#!/usr/bin/env python3
"""Time a checkpoint in transformers on the CPU and print one JSON object, as `ocelli bench model --json` does.

    python bench/peers/torch_model.py --model DIR --dtype bfloat16 --threads 2 --prompt-tokens 512 --max-tokens 2 --runs 2
    python bench/peers/torch_model.py --model DIR --dtype float32 --threads 2 --tower --runs 2

Text: a made-up prompt in one pass, then greedy tokens one by one.  --tower: features of one picture of noise, 512 x 512 pixels in one
tile, tower and connector.  Medians of --runs after one that does not count.  Needs torch and transformers.
"""
import argparse
import json
import statistics
import time

import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--tower", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    model = transformers.AutoModelForImageTextToText.from_pretrained(args.model, dtype=dtype).eval()
    runs = {}
    with torch.inference_mode():
        for run in range(args.runs + 1):
            found = tower(model, dtype) if args.tower else text(model, args)
            if run > 0:
                for name, value in found.items():
                    runs.setdefault(name, []).append(value)
    print(json.dumps({name: {"median": statistics.median(values)} for name, values in runs.items()}))


def tower(model, dtype):
    pixels = torch.rand(1, 1, 3, 512, 512, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1
    start = time.perf_counter()
    model.model.get_image_features(pixels)
    return {"encode_ms": 1e3 * (time.perf_counter() - start)}


def text(model, args):
    vocab = model.config.get_text_config().vocab_size
    # No token that stands for a picture.
    ids = torch.arange(args.prompt_tokens).mul(7919).remainder(vocab - 1000).unsqueeze(0)
    start = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    prefill = time.perf_counter() - start
    start, steps = time.perf_counter(), args.max_tokens - 1
    for _ in range(steps):
        token = out.logits[:, -1:].argmax(-1).clamp(max=vocab - 1001)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    decode = time.perf_counter() - start
    return {"prefill_tokens_per_s": args.prompt_tokens / prefill, "decode_tokens_per_s": steps / decode}


if __name__ == "__main__":
    main()
