"""Runs of commands whose disturbance by other processes is known.  Needs Linux and Python alone."""
import json
import os
import statistics
import subprocess
import sys
import time


def busy():
    """Seconds that all processors worked, and those stolen by the host, since the machine started."""
    user, nice, system, _, _, irq, soft, steal = map(int, open("/proc/stat").readline().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft) / tick, steal / tick


def run(command):
    """What a command printed as JSON, and the share of the processors' time that others took meanwhile."""
    before, start, children = busy(), time.monotonic(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    wall, after, times = time.monotonic() - start, busy(), os.times()
    own = times.children_user - children.children_user + times.children_system - children.children_system
    foreign = after[0] - before[0] - own + after[1] - before[1]
    return json.loads(done.stdout), max(0.0, foreign) / (wall * os.cpu_count())


def rounds(contenders, count, foreign):
    """`count` rounds of what each of `contenders` (name -> function giving (result, foreign share)) gives, and how many were
    disturbed and done again.  The order changes from round to round; after twice as many disturbed rounds, all count."""
    kept, again = [], 0
    while len(kept) < count:
        names = list(contenders) if len(kept) % 2 == 0 else list(contenders)[::-1]
        results = {name: contenders[name]() for name in names}
        if max(share for _, share in results.values()) > foreign and again < 2 * count:
            again += 1
            continue
        kept.append({name: result for name, (result, _) in results.items()})
        print(f"round {len(kept)} of {count}", file=sys.stderr)
    return kept, again


def ratio(kept, name, to):
    """Median over rounds of one contender's figure by another's."""
    return statistics.median(round[name] / round[to] for round in kept)


def median(kept, name):
    """Median over rounds of a contender's figure."""
    return statistics.median(round[name] for round in kept)


def cpu():
    """The processor, with the instructions that kernels ask for."""
    lines = open("/proc/cpuinfo").read().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    named = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if flag in flags]
    return f"{name} ({', '.join(named)})"
