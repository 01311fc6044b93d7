#!/usr/bin/env python3
"""Steps of training beside torch: one checkpoint, the same rows, threads and parts, in turn on one machine.

    python bench/peers/training.py --ocelli target/release/ocelli --model DIR --data FILE.jsonl [--lora R] [--batch N] [--steps N]
        [--size 512x512] [--threads N] [--rounds N] [--out FILE.json]

`--data` are rows as `ocelli train sft` takes them, each with one picture. All weights are trained, or with --lora an adapter of the
decoder's linear layers. torch computes with the weights in float32, as Ocelli does, with transformers' own attention, AdamW and, for
adapters, peft; pictures are decoded before its steps are timed, which is in its favour. Each round runs both in processes of their own;
rounds that other processes disturbed are done again. Figures: median seconds of a step after the first two, peak memory of the process.
Needs torch, transformers, peft and pillow.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet

SKIPPED = 2  # first steps, which compile, allocate and fault pages in


def peak():
    """Most bytes that a child of this process held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def torch_steps(args):
    import torch
    import transformers
    from PIL import Image

    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(args.model)
    if args.lora:
        from peft import LoraConfig, get_peft_model

        names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
        config = LoraConfig(r=args.lora, lora_alpha=2 * args.lora, target_modules=rf".*text_model\.layers\..*\.({names})")
        model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    rows = [json.loads(line) for line in open(args.data)]
    batches = []
    for step in range(args.steps):
        chosen = [rows[(step * args.batch + i) % len(rows)] for i in range(args.batch)]
        texts, pictures = [], []
        for row in chosen:
            talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]},
                    {"role": "assistant", "content": [{"type": "text", "text": row["text"]}]}]
            texts.append(processor.apply_chat_template(talk))
            pictures.append([Image.open(Path(args.data).parent / row["image"]).convert("RGB")])
        more = {}
        if args.size:
            width, height = map(int, args.size.split("x"))
            pictures = [[picture.resize((width, height)) for picture in each] for each in pictures]
            more = {"do_image_splitting": False}
        batch = processor(text=texts, images=pictures, padding=True, return_tensors="pt", **more)
        labels = batch["input_ids"].clone()
        for i, row in enumerate(chosen):
            # The answer and the end of its turn alone are learnt.
            length = int(batch["attention_mask"][i].sum())
            own = len(processor.tokenizer(row["text"])["input_ids"]) + 2
            padding = labels.shape[1] - length if processor.tokenizer.padding_side == "left" else 0
            labels[i, :padding + length - own] = -100
            labels[i, padding + length:] = -100
        batches.append(dict(batch, labels=labels))
    times = []
    for batch in batches:
        start = time.perf_counter()
        adam.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        times.append(time.perf_counter() - start)
    tokens = statistics.median(int(batch["attention_mask"].sum()) for batch in batches)
    print(json.dumps({"seconds": statistics.median(times[SKIPPED:]), "tokens": tokens, "loss": float(loss.detach()),
                      "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def ocelli_steps(args):
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "sft", "--model", args.model, "--data", args.data, "--out", Path(folder) / "out", "--steps", args.steps,
                   "--batch", args.batch, "--threads", args.threads, "--save-every", 0, "--quiet"]
        if args.lora:
            command += ["--lora", f"r={args.lora}"]
        if args.size:
            command += ["--processor", "do_image_splitting=false"]
        command += ["--recompute"] if args.recompute else []
        subprocess.run([args.ocelli, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in open(Path(folder) / "out" / "metrics.jsonl")]
    print(json.dumps({"seconds": statistics.median(line["seconds"] for line in lines[SKIPPED:]),
                      "tokens": statistics.median(line["tokens"] for line in lines), "loss": lines[-1]["loss"], "bytes": peak()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", default="target/release/ocelli")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", help="pictures of this size as one tile")
    parser.add_argument("--recompute", action="store_true", help="Ocelli computes activations again")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--foreign", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=["torch", "ocelli"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return torch_steps(args) if args.one == "torch" else ocelli_steps(args)
    contenders = {name: lambda name=name: quiet.run([sys.executable, *sys.argv, "--one", name]) for name in ("ocelli", "torch")}
    kept, again = quiet.rounds(contenders, args.rounds, args.foreign)
    middle = {name: {of: statistics.median(round[name][of] for round in kept) for of in ("seconds", "tokens", "bytes", "loss")}
              for name in contenders}
    ratio = {of: round(statistics.median(r["ocelli"][of] / r["torch"][of] for r in kept), 3) for of in ("seconds", "bytes")}
    report = {"machine": quiet.cpu(), "threads": args.threads, "model": Path(args.model).name, "lora": args.lora, "batch": args.batch,
              "size": args.size, "recompute": args.recompute, "rounds": args.rounds, "rounds_done_again": again, "median": middle,
              "ocelli_to_torch": ratio}
    print(json.dumps(report, indent=1))
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
