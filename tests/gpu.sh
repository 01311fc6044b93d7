#!/usr/bin/env bash
# The tests and benchmarks of the CUDA backend on a machine that has an NVIDIA GPU, but neither Rust nor a network.
#
#   tests/gpu.sh pack            builds test and benchmark programs into target/gpu/pack.tar.xz (14 MiB at most)
#   tests/gpu.sh run OUT_DIR     on the machine with the GPU, in a checkout with that file: runs everything, about 8 minutes, and
#                                writes OUT_DIR/record.json and OUT_DIR/summary.txt, complete at any moment, and a log of each step;
#                                cases.log and rows.jsonl have each case and each row as it comes
#
# The second needs Python; with torch there are yardsticks (cuBLAS, the backends of scaled_dot_product_attention). OCELLI_PACK names
# another place of the file. Green (exit code 0) means that every result is right; bars are printed as met or missed.
set -eu -o pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
pack=${OCELLI_PACK:-$target/gpu/pack.tar.xz}
limit=$((14 << 20))

# Path of the program that cargo builds. Always the whole workspace, as the tests, so that they share what is compiled.
built() { # NAME CARGO ARGUMENTS...
    local name=$1 path
    shift
    path=$(cargo "$@" --release --locked --workspace --message-format json 2>"$target/gpu/build.log" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep -E "/$name(-[0-9a-f]+)?\$" | tail -n 1)
    [ -n "$path" ] || { tail -n 20 "$target/gpu/build.log" >&2; echo "error: no program $name was built" >&2; exit 1; }
    echo "$path"
}

pack() {
    mkdir -p "$target/gpu/bin"
    rm -f "$target"/gpu/bin/* "$pack"
    local name path
    for name in cuda golden wgpu; do
        path=$(built $name test --no-run --test $name)
        cp "$path" "$target/gpu/bin/$name"
    done
    path=$(built ocelli build --bins)
    cp "$path" "$target/gpu/bin/ocelli"
    strip "$target"/gpu/bin/*
    # The demo model lies in two of them: it takes a window of that size to see it.
    tar --create --directory "$target/gpu" bin | xz -9 >"$pack"
    local size
    size=$(stat -c %s "$pack")
    echo "$pack: $((size >> 10)) KiB"
    [ "$size" -le $limit ] || { echo "error: more than $((limit >> 20)) MiB" >&2; exit 1; }
}

case ${1:-} in
    pack) pack ;;
    run)
        [ $# -eq 2 ] || { echo "usage: tests/gpu.sh run OUT_DIR" >&2; exit 2; }
        [ -s "$pack" ] || { echo "error: $pack is missing; tests/gpu.sh pack makes it" >&2; exit 1; }
        command -v nvidia-smi >/dev/null || { echo "error: there is no NVIDIA driver here (nvidia-smi)" >&2; exit 1; }
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        # Python knows this compression where the program xz is missing.
        tar --extract --xz --file "$pack" --directory "$work" 2>/dev/null ||
            python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' "$pack" "$work"
        OCELLI_ROOT=$PWD OCELLI_CACHE=$work/cache python3 tests/gpu.py "$work/bin" "$2"
        ;;
    *)
        echo "usage: tests/gpu.sh pack | run OUT_DIR" >&2
        exit 2
        ;;
esac
