#!/usr/bin/env python3
"""From the start of a server to its first token, and the memory that it has taken by then: `ocelli serve` beside llama.cpp's server, in turn.

    python bench/peers/cold.py --ocelli target/release/ocelli --model DIR --gguf DIR --picture FILE [--rounds 5] [--out FILE.json]

--gguf holds text.gguf and mmproj.gguf of the same checkpoint (bench/peers/make_vlm_gguf.py).  A round starts each server anew and asks for
one token: about a text, about a picture, and about the picture when none of the model's files is in the system's memory.  llama.cpp cuts
every picture into tiles and adds the whole; --longest-edge has Ocelli do so too, the report has the prompt tokens of both.  llama.cpp runs
no warm-up of its own.  Ratios are medians over rounds, below 1 where Ocelli takes less.  Needs Linux and Python alone.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet
from server import Server

ASKED = {"text": (False, False), "picture": (True, False), "picture, files dropped": (True, True)}
# Seconds from one question whether a server is ready to the next.
POLL = 0.004


def let_go(paths):
    """Has the system let go of what it holds of files."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--server", type=Path, default=Path("target/peers/llama/bin/llama-server"))
    parser.add_argument("--server-options", default="", help="further options of llama.cpp's server, with spaces between")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--longest-edge", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--foreign", type=float, default=0.1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ours = [args.ocelli, "serve", "--backend", "cpu", "--threads", args.threads, "--model", args.model, "--processor", "do_image_splitting=true",
            "--processor", "size=" + json.dumps({"longest_edge": args.longest_edge})]
    theirs = [args.server, "-m", args.gguf / "text.gguf", "--mmproj", args.gguf / "mmproj.gguf", "-np", 1, "-c", 2048, "-t", args.threads, "-tb",
              args.threads, "--no-webui", "--jinja", "--no-warmup", *args.server_options.split()]
    commands = {"ocelli": (ours, args.model), "ocelli bf16": ([*ours, "--dtype", "bf16"], args.model), "llama-server": (theirs, args.gguf)}

    def measure(name, picture, drop):
        command, folder = commands[name]
        if drop:
            let_go(path for path in folder.iterdir() if path.is_file())
        before, start = quiet.busy(), time.monotonic()
        with Server(command, POLL) as server:
            ready = time.monotonic() - server.start
            usage = server.usage(args.picture if picture else None, "Describe this picture.", 1, 600)
            end, own = time.monotonic(), server.seconds()
            result = {"ready_ms": 1e3 * ready, "first_token_ms": 1e3 * (end - server.start), "peak_bytes": server.peak_bytes(),
                      "prompt_tokens": usage["prompt_tokens"]}
        after = quiet.busy()
        return result, max(0.0, after[0] - before[0] - own + after[1] - before[1]) / ((end - start) * os.cpu_count())

    report = {"schema": "ocelli.peers.cold.v1", "cpu": quiet.cpu(), "threads": args.threads, "longest_edge": args.longest_edge,
              "server_options": args.server_options, "rows": []}
    for asked, (picture, drop) in ASKED.items():
        contenders = {name: lambda name=name: measure(name, picture, drop) for name in commands}
        kept, again = quiet.rounds(contenders, args.rounds, args.foreign)
        row = {"asked": asked, "disturbed_rounds": again, "rounds": kept, "ratios": {}}
        for field in ("first_token_ms", "peak_bytes"):
            figures = [{name: result[field] for name, result in one.items()} for one in kept]
            row["ratios"][field] = {name: quiet.ratio(figures, name, "llama-server") for name in commands if name != "llama-server"}
            shown = ", ".join(f"{name} {quiet.median(figures, name):.4g}" for name in commands)
            print(f"{asked}, {field}: {shown}; by llama-server: {row['ratios'][field]}")
        report["rows"].append(row)
    if args.out:
        args.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
