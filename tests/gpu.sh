#!/usr/bin/env bash
# The tests and benchmarks of the CUDA backend on a machine that has an NVIDIA GPU, but neither Rust nor a network.
#
#   tests/gpu.sh pack            builds target/gpu/pack.tar.xz: test and benchmark programs, the kernels that they will ask a GPU for,
#                                compiled by the NVRTC that tests/nvrtc.sh fetches, and the files that they read
#   tests/gpu.sh run OUT_DIR     on the machine with the GPU, with that file and this script: runs everything, about 8 minutes, and
#                                writes OUT_DIR/record.json and OUT_DIR/summary.txt, complete at any moment, and a log of each step;
#                                cases.log and rows.jsonl have each case and each row as it comes
#   tests/gpu.sh programs DIR    builds the programs alone
#
# OCELLI_GPU_ARCHS names the architectures that kernels are compiled for, with blanks between: sm_90a (H100, H200) unless it says
# otherwise, none if it is empty. The first pack takes some minutes of compilation; target/gpu/cache keeps what it made. A kernel that is not in
# the pack is compiled where it is run, and the record counts it (`cubins`).
#
# The second needs Python; with torch there are yardsticks (cuBLAS, the backends of scaled_dot_product_attention). OCELLI_PACK names
# another place of the file. Green (exit code 0) means that every result is right; bars are printed as met or missed.
#
# OCELLI_GPU_TINY=1 is for tests of this script: a few cases, one model and small shapes, with kernels of the emulator, for a run on the stand-in
# for the driver (tests/cuda/standin). The record of such a run says so. OCELLI_PROGRAMS names a folder that has the programs.
set -eu -o pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
pack=${OCELLI_PACK:-$target/gpu/pack.tar.xz}
archs=${OCELLI_GPU_ARCHS-sm_90a}
# A lent machine takes a checkout and this file of 64 MiB together. The file has a copy of what is read of the checkout, so the references of
# models (tests/golden, 47 MiB) need not come along: `git sparse-checkout set --no-cone '/*' '!/tests/golden/'` leaves them out, and
# `git sparse-checkout disable` brings them back. The rest of the checkout has 17 MiB.
limit=$((44 << 20))

if [ -n "${OCELLI_GPU_TINY:-}" ]; then
    export OCELLI_GPU_TINY=1 OCELLI_GPU_ONLY=${OCELLI_GPU_ONLY-gather_rows,norm,rope,gpu::matmul,gpu::attention,sample,on_a_gpu,model}
    export OCELLI_FAMILIES=smolvlm OCELLI_EVERY=1000 OCELLI_GPU_SHAPES=tests/cuda/tiny.toml
    export OCELLI_CASE='gather_rows 1 of 1x1|norm Rms 5x|rope 1 tokens|matmul aligned 64x128x64|attention decode 1|sample greedy 1x'
fi

# Path of the program that cargo builds. Always the whole workspace, as the tests, so that they share what is compiled.
built() { # NAME CARGO ARGUMENTS...
    local name=$1 path
    shift
    path=$(cargo "$@" --release --locked --workspace --message-format json 2>"$target/gpu/build.log" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep -E "/$name(-[0-9a-f]+)?\$" | tail -n 1)
    [ -n "$path" ] || { tail -n 20 "$target/gpu/build.log" >&2; echo "error: no program $name was built" >&2; exit 1; }
    echo "$path"
}

programs() { # DIR
    mkdir -p "$target/gpu" "$1"
    local name path
    for name in cuda golden; do
        path=$(built $name test --no-run --test $name)
        cp "$path" "$1/$name"
    done
    path=$(built ocelli build --bins)
    cp "$path" "$1/ocelli"
}

# The kernels for an architecture that a program asks a GPU for.
kernels() { # PROGRAM ARCH
    local log=$work/kernels.log
    OCELLI_COMPILE_TO=$work/cubins OCELLI_CUDA_ARCH=$2 OCELLI_CACHE=$target/gpu/cache \
        "$work/bin/$1" kernels_for_a_gpu --nocapture >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
    grep -oE '[0-9]+ kernels of .*' "$log" || { echo "error: $1 made no kernels" >&2; exit 1; }
}

pack() {
    mkdir -p "$target/gpu/cache" "$(dirname "$pack")"
    rm -f "$pack"
    local name arch level=-9 reads=$work/reads
    if [ -n "${OCELLI_PROGRAMS:-}" ]; then
        mkdir -p "$work/bin"
        for name in cuda golden ocelli; do cp "$OCELLI_PROGRAMS/$name" "$work/bin/$name"; done
    else
        programs "$work/bin"
    fi
    mkdir -p "$work/cubins" "$work/tree"
    if [ -n "${OCELLI_GPU_TINY:-}" ]; then
        export OCELLI_COMPILE_WITH=host
        level=-0
    elif [ -n "$archs" ]; then
        local compiler
        compiler=$(tests/nvrtc.sh) || { echo "error: no kernels without a compiler; OCELLI_GPU_ARCHS= packs none" >&2; exit 1; }
        eval "$compiler"
    fi
    for arch in $archs; do
        for name in cuda golden; do kernels $name "$arch"; done
    done
    # The program tells what it reads.
    "$work/bin/golden" files_of_a_gpus_run --nocapture | sed -n 's/^reads: //p' >"$reads"
    [ -s "$reads" ] || { echo "error: golden reads nothing" >&2; exit 1; }
    printf '%s\n' tests/gpu.py tests/cuda/tiny.toml bench/make_real_size.py >>"$reads"
    sort -u "$reads" | tr '\n' '\0' | xargs -0 tar --create | tar --extract --directory "$work/tree"
    strip "$work"/bin/*
    tar --create --directory "$work" bin cubins tree | xz $level --threads 0 >"$pack"
    local size
    size=$(stat -c %s "$pack")
    echo "$pack: $((size >> 10)) KiB, $(find "$work/cubins" -name '*.cubin' | wc -l) kernels for ${archs:-no architecture}"
    [ "$size" -le $limit ] || { echo "error: more than $((limit >> 20)) MiB" >&2; exit 1; }
}

unpacked() {
    # Python knows this compression where the program xz is missing.
    tar --extract --xz --file "$pack" --directory "$work" 2>/dev/null ||
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' "$pack" "$work"
}

case ${1:-} in pack | run)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    ;;
esac
case ${1:-} in
    pack) pack ;;
    programs)
        [ $# -eq 2 ] || { echo "usage: tests/gpu.sh programs DIR" >&2; exit 2; }
        programs "$2"
        ;;
    run)
        [ $# -eq 2 ] || { echo "usage: tests/gpu.sh run OUT_DIR" >&2; exit 2; }
        [ -s "$pack" ] || { echo "error: $pack is missing; tests/gpu.sh pack makes it" >&2; exit 1; }
        mkdir -p "$2"
        out=$(cd "$2" && pwd)
        unpacked
        # The driver itself says whether there is a GPU.
        "$work/bin/ocelli" devices >"$work/devices"
        grep -E '^cuda ' "$work/devices" | grep -qv ' unavailable: ' || { grep -E '^cuda ' "$work/devices" >&2; echo "error: there is no GPU here" >&2; exit 1; }
        # What it runs ends with this script, however that ends, where the system knows how.
        with_us=$(command -v setpriv >/dev/null && echo setpriv --pdeathsig KILL || true)
        OCELLI_ROOT=$work/tree OCELLI_CACHE=$work/cache OCELLI_CUBINS=${OCELLI_CUBINS-$work/cubins} \
            $with_us python3 "$work/tree/tests/gpu.py" "$work/bin" "$out"
        ;;
    *)
        echo "usage: tests/gpu.sh pack | run OUT_DIR | programs DIR" >&2
        exit 2
        ;;
esac
