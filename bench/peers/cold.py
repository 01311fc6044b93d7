#!/usr/bin/env python3
"""Cold starts: from the start of a process to the first token of an answer, and the most memory that it held.

    python bench/peers/cold.py --ocelli target/release/ocelli --model DIR --work DIR [--completion PATH] [--rounds N] [--out FILE.json]

The same text, weights (DIR as bf16, and the copies in --work that run.py makes) and threads in Ocelli and in llama.cpp's
llama-completion, in turn; the files are in the page cache.  Milliseconds to the first byte of the answer and MiB resident at most,
pages of the mapped file included, medians over rounds.  Ratios are below 1 where Ocelli takes less.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet

PROMPT = "The quick brown fox jumps over the lazy dog. " * 6


def start(command):
    """Milliseconds to the first byte on standard output, and MiB resident at most."""
    begin = time.perf_counter()
    child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = os.read(child.stdout.fileno(), 1)
    took = 1e3 * (time.perf_counter() - begin)
    while os.read(child.stdout.fileno(), 1 << 16):
        pass
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0 or not first:
        sys.exit(f"{' '.join(map(str, command))}: exit {child.returncode}")
    return took, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", default="target/release/ocelli")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--completion", default="target/peers/llama/bin/llama-completion")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    models = {"bf16": (args.model, "bf16.gguf"), "int8": (args.work / "int8", "q8_0.gguf"), "int4": (args.work / "int4", "q4_0.gguf")}
    report = {"machine": quiet.cpu(), "threads": args.threads, "rounds": args.rounds, "classes": {}}
    for kind, (model, gguf) in models.items():
        contenders = {
            "ocelli": [args.ocelli, "run", "--quiet", "--backend", "cpu", "--threads", args.threads, "--model", model, "--max-tokens", 4,
                       "--ignore-eos", PROMPT],
            "llama.cpp": [args.completion, "-m", args.work / gguf, "-t", args.threads, "-n", 4, "-no-cnv", "--no-display-prompt",
                          "--ignore-eos", "--temp", 0, "-c", 2048, "-p", PROMPT],
        }
        rounds = []
        for number in range(args.rounds + 1):
            names = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
            found = {name: start(contenders[name]) for name in names}
            # The first round fills the page cache.
            if number > 0:
                rounds.append(found)
        median = lambda name, i: statistics.median(found[name][i] for found in rounds)
        ratio = lambda i: statistics.median(found["ocelli"][i] / found["llama.cpp"][i] for found in rounds)
        row = {"first_token_ms": {name: round(median(name, 0), 1) for name in contenders},
               "most_memory_mib": {name: round(median(name, 1)) for name in contenders},
               "ratio": {"first_token": round(ratio(0), 3), "most_memory": round(ratio(1), 3)}}
        report["classes"][kind] = row
        print(kind, json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
