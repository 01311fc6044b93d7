#!/usr/bin/env python3
"""Compare builds of ocelli on one model, run in turn on one machine.

    python bench/compare.py --build before=PATH --build after=PATH --rounds 9 --out FILE.json -- --model DIR [options of bench model]

Each round runs `ocelli bench model` of every build, in an order that changes from round to round, so that a machine whose speed
drifts drifts for all of them.  A round in which other processes took more than --foreign of the processors is done again.  What
counts is the median over rounds of each ratio to the first build, above 1 where a build is faster.  Needs Linux and Python alone.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

STAGES = {"resize": ("resize_ms", -1), "tower": ("encode_ms", -1), "first token": ("first_token_ms", -1),
          "prefill": ("prefill_tokens_per_s", 1), "decode": ("decode_tokens_per_s", 1)}


def busy():
    """Seconds that all processors worked, and those stolen by the host, since the machine started."""
    user, nice, system, _, _, irq, soft, steal = map(int, open("/proc/stat").readline().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft) / tick, steal / tick


def run(command):
    """What a command printed, and the share of the processors' time that others took meanwhile."""
    before, start = busy(), time.monotonic()
    children = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    wall, after, times = time.monotonic() - start, busy(), os.times()
    own = times.children_user - children.children_user + times.children_system - children.children_system
    foreign = after[0] - before[0] - own + after[1] - before[1]
    return json.loads(done.stdout.splitlines()[-1]), max(0.0, foreign) / (wall * os.cpu_count())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="append", required=True, metavar="NAME=PATH", help="a build; the first is the yardstick")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--foreign", type=float, default=0.05, help="share of the processors that others may take")
    parser.add_argument("--out", help="JSON record")
    parser.add_argument("options", nargs="+", help="options of bench model, after --")
    args = parser.parse_args()
    builds = dict(build.split("=", 1) for build in args.build)
    rounds, again = [], 0
    while len(rounds) < args.rounds:
        names = list(builds) if len(rounds) % 2 == 0 else list(builds)[::-1]
        results = {name: run([builds[name], "bench", "model", "--json", *args.options]) for name in names}
        if max(foreign for _, foreign in results.values()) > args.foreign and again < 2 * args.rounds:
            again += 1
            continue
        rounds.append({name: result for name, (result, _) in results.items()})
        print(f"round {len(rounds)} of {args.rounds}", file=sys.stderr)
    first = next(iter(builds))
    value = lambda round, name, key: (round[name].get("report") or round[name])[key]["median"]
    report = {"machine": cpu(), "threads": os.cpu_count(), "options": args.options, "rounds": args.rounds,
              "rounds_done_again": again, "stages": {}}
    for stage, (key, sign) in STAGES.items():
        of = lambda name: [value(round, name, key) for round in rounds]
        report["stages"][stage] = {
            "unit": key.split("_", 1)[1] if sign < 0 else "tokens/s",
            "median": {name: statistics.median(of(name)) for name in builds},
            "speed_ratio": {
                name: statistics.median((b / a) ** sign if a and b else 1.0 for a, b in zip(of(first), of(name)))
                for name in builds
            },
        }
    for stage, of in report["stages"].items():
        shown = "  ".join(f"{name} {of['median'][name]:.4g} ({of['speed_ratio'][name]:.3f})" for name in builds)
        print(f"{stage:12} {shown}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            flags = open("/proc/cpuinfo").read().split("flags", 1)[1].splitlines()[0].split()
            named = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if flag in flags]
            return f"{line.split(':', 1)[1].strip()} ({', '.join(named)})"
    return platform.processor()


if __name__ == "__main__":
    main()
