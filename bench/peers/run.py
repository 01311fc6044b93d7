#!/usr/bin/env python3
"""Ocelli beside its peers: one checkpoint, the same threads, picture and tokens, in turn on one machine.

    python bench/peers/run.py --ocelli target/release/ocelli --model DIR --work DIR [--llama-bench PATH] [--out FILE.json]

`--work` keeps the quantized copies that are made of DIR: int8 and int4 in groups of 32 by `ocelli quantize`, and GGUF files with
bf16, Q8_0 and Q4_0 (head and embedding Q8_0, as in ours) for llama.cpp, see make_gguf.py and llama.sh.  transformers runs where this
Python has it, from the stored bf16 weights.  Each round measures every contender of a class; rounds that other processes disturbed
are done again.  Ratios are medians over rounds, above 1 where Ocelli is faster than the best peer.  What is not installed is skipped
by name.
"""
import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet

# Names, copies of the weights and options.  A tower of 8 bits is a copy of its own.
FAST, BF16 = ["--fast-int8"], ["--dtype", "bf16"]
CLASSES = {
    "bf16": [("ocelli f32", "bf16", []), ("ocelli bf16", "bf16", BF16)],
    "int8": [("ocelli exact", "int8", []), ("ocelli bf16", "int8", BF16), ("ocelli int8", "int8", FAST),
             ("ocelli int8 bf16", "int8", [*FAST, *BF16])],
    "int4": [("ocelli exact", "int4", []), ("ocelli bf16", "int4", BF16), ("ocelli int8", "int4", FAST),
             ("ocelli int8 bf16", "int4", [*FAST, *BF16])],
}
TOWERS = {"bf16": CLASSES["bf16"], "int8": [("ocelli int8", "int8-tower", FAST), ("ocelli int8 bf16", "int8-tower", [*FAST, *BF16])]}
GGUF = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
# Tokens of the prompt, tokens of the answer, what counts: tokens a second, or one tile of 512 x 512 pixels in tiles a second.
STAGES = {"tower, one tile": (0, 1, "tower"), "prefill 512": (512, 2, "prefill"), "decode, depth 128": (128, 64, "decode"),
          "decode, depth 1024": (1024, 64, "decode")}
# Peers: in which class, and the type that they compute in.
TORCH = {"transformers f32": ("bf16", "float32"), "transformers bf16": ("bf16", "bfloat16")}
OPENVINO = {"OpenVINO f32": ("bf16", "f32"), "OpenVINO bf16": ("bf16", "bf16"), "OpenVINO int8": ("int8", "int8")}
NOT_RUN = ["mistral.rs"]


def copies(args):
    """Where the weights of each class are, for Ocelli."""
    found = {"bf16": args.model}
    for name, kind, include in (("int8", "int8", "head"), ("int4", "int4", None), ("int8-tower", "int8", "head,tower,connector")):
        found[name] = args.work / name
        if not found[name].exists():
            include = ["--include", include] if include else []
            subprocess.run([args.ocelli, "quantize", "--model", args.model, "--out", found[name], "--format", kind,
                            *include, "--quiet"], check=True)
    return found


def ocelli(args, model, options, stage):
    prompt, answer, what = STAGES[stage]

    picture = ["--processor", "do_image_splitting=false", "--image-size", "512x512"]
    asked = picture if what == "tower" else ["--prompt-tokens", str(prompt)]

    def measure():
        report, foreign = quiet.run([args.ocelli, "bench", "model", "--json", "--model", model, "--backend", "cpu", "--threads",
                                     str(args.threads), "--max-tokens", str(answer), "--runs", "2", *asked, *options])
        return figure(report, what), foreign
    return measure


def figure(report, what):
    return 1e3 / report["encode_ms"]["median"] if what == "tower" else report[f"{what}_tokens_per_s"]["median"]


def torch(args, dtype, stage):
    prompt, answer, what = STAGES[stage]
    # Its steps are slow: a few of them tell.
    asked = ["--tower"] if what == "tower" else ["--prompt-tokens", prompt, "--max-tokens", min(answer, 9)]

    def measure():
        command = [sys.executable, Path(__file__).with_name("torch_model.py"), "--model", args.model, "--dtype", dtype,
                   "--threads", args.threads, "--runs", 1, *asked]
        report, foreign = quiet.run(list(map(str, command)))
        return figure(report, what), foreign
    return measure


def openvino(args, dtype):
    command = [sys.executable, Path(__file__).with_name("openvino_tower.py"), "--model", args.model, "--work", args.work, "--dtype", dtype,
               "--threads", args.threads]
    command = list(map(str, command))
    subprocess.run([*command, "--convert-only"], check=True, stdout=subprocess.DEVNULL)

    def measure():
        report, foreign = quiet.run(command)
        return figure(report, "tower"), foreign
    return measure


def llama(args, gguf, stage):
    prompt, answer, what = STAGES[stage]
    tokens = ["-p", prompt, "-n", 0] if what == "prefill" else ["-p", 0, "-n", answer, "-d", prompt]

    def measure():
        command = [args.llama_bench, "-m", gguf, "-t", args.threads, "-r", 2, "-o", "json", *tokens, *args.llama_options.split()]
        report, foreign = quiet.run(list(map(str, command)))
        return report[-1]["avg_ts"], foreign
    return measure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", default="target/release/ocelli")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench") or "target/peers/llama/bin/llama-bench")
    parser.add_argument("--llama-options", default="", help="further options of llama-bench, with spaces between")
    parser.add_argument("--gguf", type=Path, help="folder with bf16.gguf, q8_0.gguf and q4_0.gguf; made by make_gguf.py otherwise")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--foreign", type=float, default=0.05)
    parser.add_argument("--stage", help="only stages whose name contains this")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    models = copies(args)
    skipped = list(NOT_RUN)
    gguf = args.gguf or args.work
    if not Path(args.llama_bench).exists():
        skipped.append("llama.cpp")
    elif not all((gguf / f"{kind}.gguf").exists() for kind in GGUF.values()):
        make = Path(__file__).with_name("make_gguf.py")
        subprocess.run([sys.executable, make, "--model", args.model, "--out", gguf], check=True)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        skipped.append("transformers")
    if not all(importlib.util.find_spec(name) for name in ("openvino", "nncf", "torch", "transformers")):
        skipped.append("OpenVINO")
    report = {"machine": quiet.cpu(), "threads": args.threads, "model": args.model.name, "rounds": args.rounds,
              "llama_options": args.llama_options, "skipped": skipped, "unit": "tokens/s, of the tower tiles/s", "classes": {}}
    for kind, variants in CLASSES.items():
        for stage in STAGES:
            tower = STAGES[stage][2] == "tower"
            if args.stage and args.stage not in stage or tower and kind not in TOWERS:
                continue
            contenders = {name: ocelli(args, models[of], options, stage) for name, of, options in (TOWERS[kind] if tower else variants)}
            peers = {}
            if tower and "OpenVINO" not in skipped:
                peers.update((name, openvino(args, dtype)) for name, (of, dtype) in OPENVINO.items() if of == kind)
            if "llama.cpp" not in skipped and not tower:
                peers["llama.cpp"] = llama(args, gguf / f"{GGUF[kind]}.gguf", stage)
            if "transformers" not in skipped:
                peers.update((name, torch(args, dtype, stage)) for name, (of, dtype) in TORCH.items() if of == kind)
            kept, again = quiet.rounds(contenders | peers, args.rounds, args.foreign)
            row = {"median": {name: float(f"{quiet.median(kept, name):.4g}") for name in kept[0]}, "rounds_done_again": again}
            if peers:
                best = max(peers, key=lambda name: quiet.median(kept, name))
                row["best_peer"] = best
                row["ratio"] = {name: round(quiet.ratio(kept, name, best), 3) for name in contenders}
            report["classes"].setdefault(kind, {})[stage] = row
            shown = "  ".join(f"{name} {value}" for name, value in row["median"].items())
            against = f"against {row['best_peer']}: {row['ratio']}" if peers else "no peer"
            print(f"{kind:5} {stage:18} {shown}  {against}", flush=True)
    print(f"skipped: {', '.join(skipped)}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
