#!/usr/bin/env python3
"""`ocelli batch` over many pictures at once, beside one picture at a time and beside llama.cpp's server with parallel slots, in turn.

    python bench/peers/batch.py --ocelli target/release/ocelli --model DIR --pictures DIR [--tokens 32] [--rounds 3] [--out FILE.json]
                                [--server target/peers/llama/bin/llama-server --gguf DIR] [--longest-edge N]

DIR is a checkpoint such as that of bench/make_real_size.py, and a folder of different pictures.  Each answer has --tokens tokens,
whatever the model says.  Rounds that other processes disturbed are done again.  The ratio is pictures a second with --parallel as
many as there are by those of another contender, median over rounds.

--gguf holds text.gguf and mmproj.gguf of the same checkpoint (bench/peers/make_vlm_gguf.py).  llama.cpp cuts every picture into tiles
and adds the whole: with --longest-edge 1024, on both sides, a square picture is 5 tiles to both.  Without it Ocelli takes each picture as
one tile, which llama.cpp cannot, and the server is left out.  All requests are sent to the server at once; it has as many slots, and
is started anew for each round, its start not counted.  The report has the prompt tokens of both.  Needs Linux and Python alone; what is
not there is named and left out.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet
from server import Server, pictures_in

PROMPT = "Describe this picture."


def serve(args, pictures):
    """Answers of llama.cpp's server about all pictures, as a report like that of `ocelli batch`."""
    count = len(pictures)
    with Server([args.server, "-m", args.gguf / "text.gguf", "--mmproj", args.gguf / "mmproj.gguf", "-np", count, "-c", args.context * count,
                 "-t", args.threads, "-tb", args.threads, "--no-webui", "--jinja"]) as server:
        before, own, start = quiet.busy(), server.seconds(), time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            usage = list(pool.map(lambda path: server.usage(path, PROMPT, args.tokens, args.patience), pictures))
        wall, after = time.monotonic() - start, quiet.busy()
        foreign = after[0] - before[0] - (server.seconds() - own) + after[1] - before[1]
    tokens = sum(one["completion_tokens"] for one in usage)
    report = {"rows": count, "run_s": wall, "pictures_per_s": count / wall, "tokens": tokens,
              "prompt_tokens": sum(one["prompt_tokens"] for one in usage)}
    assert tokens == count * args.tokens, report
    return report, max(0.0, foreign) / (wall * os.cpu_count())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--foreign", type=float, default=0.05)
    parser.add_argument("--options", default="", help="further options of `ocelli batch`, with spaces between")
    parser.add_argument("--longest-edge", type=int, help="cut pictures of at most so many pixels into tiles")
    parser.add_argument("--server", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--gguf", type=Path, help="folder of text.gguf and mmproj.gguf")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a slot of the server")
    parser.add_argument("--patience", type=float, default=3600, help="seconds that an answer of the server may take")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pictures = pictures_in(args.pictures)
    count = len(pictures)
    splitting = ["do_image_splitting=false"]
    if args.longest_edge:
        splitting = ["do_image_splitting=true", "--processor", "size=" + json.dumps({"longest_edge": args.longest_edge})]

    def run(parallel):
        def measure():
            with tempfile.TemporaryDirectory() as folder:
                command = [args.ocelli, "batch", *pictures, "--out", Path(folder) / "out.jsonl", "--model", args.model,
                           "--prompt", PROMPT, "--max-tokens", args.tokens, "--ignore-eos", "--parallel", parallel,
                           "--backend", "cpu", "--threads", args.threads, "--processor", *splitting, "--json",
                           *args.options.split()]
                report, foreign = quiet.run(list(map(str, command)))
            assert report["rows"] == count and report["failed"] == 0, report
            return report, foreign
        return measure

    contenders = {"together": run(count), "alone": run(1)}
    wanted = {"--server": args.server, "--gguf": args.gguf, "--longest-edge": args.longest_edge}
    missing = [f"{name} is not given" for name, value in wanted.items() if value is None]
    files = [args.server, *(args.gguf / f"{name}.gguf" for name in ("text", "mmproj") if args.gguf)]
    missing += [f"{path} is not there" for path in files if path and not path.is_file()]
    if missing:
        print(f"left out: llama.cpp's server: {'; '.join(missing)}", file=sys.stderr)
    else:
        contenders["llama-server"] = lambda: serve(args, pictures)

    kept, again = quiet.rounds(contenders, args.rounds, args.foreign)
    speeds = [{name: report["pictures_per_s"] for name, report in one.items()} for one in kept]
    print(f"{count} pictures, {args.tokens} tokens each, pictures/s: "
          + ", ".join(f"{quiet.median(speeds, name):.3f} {name}" for name in contenders))
    ratios = {name: quiet.ratio(speeds, "together", name) for name in contenders if name != "together"}
    print("; ".join(f"together by {name}: {ratio:.2f}" for name, ratio in ratios.items()))
    if args.out:
        report = {"schema": "ocelli.peers.batch.v1", "cpu": quiet.cpu(), "threads": args.threads, "pictures": count, "tokens": args.tokens,
                  "options": args.options, "longest_edge": args.longest_edge, "ratio": ratios["alone"], "ratios": ratios,
                  "disturbed_rounds": again, "rounds": kept}
        args.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
