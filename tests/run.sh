#!/usr/bin/env bash
# Runs the tests.
#
#   tests/run.sh [STREAM]...        without a stream: all of them; `tests/run.sh --list` names them
#
# Needs Rust and a C compiler (a C++ compiler for CUDA kernels on the host); uses cargo-nextest where it is installed; fetches software
# Vulkan drivers, NVIDIA's run-time compiler, tokenizers of published models, OpenAI's clients, what the Python package
# is tested with, and peft, see vulkan.sh, nvrtc.sh, tokenizers.sh, clients.sh, python.sh and peft.sh. What cannot run here is printed as
# `skipped: what: why` and counted. OCELLI_REQUIRE names, with commas between, what must not be skipped (`all` for
# everything). The last lines are the slowest tests and `N passed, N failed, N skipped`; the exit code is 0 only without failures.
# The output of each stream is kept in target/test-logs/.
set -u -o pipefail
cd "$(dirname "$0")/.."

export CARGO_TERM_COLOR=never RUST_BACKTRACE="${RUST_BACKTRACE:-0}"
logs=${CARGO_TARGET_DIR:-target}/test-logs
mkdir -p "$logs"
rm -f "$logs"/*.env "$logs"/*.why "$logs"/times
passed=0 failed=0 skipped=0 broken=()

# Test binaries of the package in tests/. `conformance` and `golden_models` go through the instruction set levels of the
# machine themselves; the command line is run once for each.
binaries=$(sed -n '/^\[\[test\]\]/,/^path/ s/^name = "\(.*\)"/\1/p' tests/Cargo.toml)
by_level=" cli "
streams="fmt clippy docs features unit doctest $(echo $binaries) wgpu cuda python"
# Tests of another stream that are also asked for by themselves.
parts="batch"

levels() {
    echo scalar
    case $(uname -m) in
        x86_64 | amd64)
            local have
            have=" $(sed -n '/^flags/{s/.*://p;q}' /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.leaf7_features) "
            have=$(echo "$have" | tr 'A-Z' 'a-z')
            case $have in *" avx2 "*) echo avx2 ;; esac
            case $have in *" avx512bw "*) echo avx512 ;; esac
            ;;
        aarch64 | arm64) echo neon ;;
    esac
}

missing_levels() {
    local level
    for level in avx2 avx512 neon; do
        levels | grep -qx $level || echo $level
    done
}

required() {
    case ",${OCELLI_REQUIRE:-}," in *",$1,"* | *",all,"*) return 0 ;; esac
    return 1
}

skip() { # WHAT WHY
    if required "$1"; then
        echo "failed: $1: $2, and OCELLI_REQUIRE=$OCELLI_REQUIRE asks for it"
        failed=$((failed + 1)) broken+=("$1")
    else
        echo "skipped: $1: $2"
        skipped=$((skipped + 1))
    fi
}

# Runs a command that passes or fails as a whole.
whole() { # NAME COMMAND...
    local name=$1 log=$logs/$1.log
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
    else
        grep -vE '^ +(Compiling|Checking|Documenting|Finished|Downloaded|Downloading) ' "$log" | tail -n 60
        failed=$((failed + 1)) broken+=("$name")
    fi
}

# Runs tests and counts them from what the runner prints.
counted() { # NAME COMMAND...
    local name=$1 log=$logs/${1// /-}.log code=0 p f s
    shift
    "$@" >"$log" 2>&1 || code=$?
    # nextest: `Summary [ 1.2s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped`; its skipped ones are those not selected.
    # cargo test: `test result: ok. 5 passed; 0 failed; ...`, once for each binary.
    p=$(sed -nE 's/^ *Summary .* tests? run: ([0-9]+) passed.*/\1/p; s/^test result: .* ([0-9]+) passed;.*/\1/p' "$log" | paste -sd+ -)
    f=$(sed -nE 's/^ *Summary .* ([0-9]+) failed.*/\1/p; s/^ *Summary .* ([0-9]+) timed out.*/\1/p; s/^test result: .* ([0-9]+) failed;.*/\1/p' "$log" | paste -sd+ -)
    p=$((${p:-0})) f=$((${f:-0}))
    # nextest: `PASS [   1.036s] (31/31) ocelli-tests::conformance rope`.
    sed -nE "s|^ *[A-Z]+ \\[ *([0-9.]+)s\\] (\\([ 0-9/]+\\) )?([^ ]+ [^ ]+)\$|\\1 s  $name: \\3|p" "$log" | sort -u >>"$logs/times"
    s=$(grep -cE '^ *skipped: ' "$log")
    grep -E '^ *skipped: ' "$log" | sed -E 's/^ +//' | sort | uniq
    if [ $code -ne 0 ]; then
        [ $f -eq 0 ] && f=1
        grep -vE '^ +(Compiling|Finished|Running|Downloaded|PASS|Starting) |^test .* ok$' "$log" | tail -n 100
        broken+=("$name")
    fi
    # A test that skips ends without a failure, so the runner counts it as passed.
    [ $s -gt $p ] && s=$p
    passed=$((passed + p - s)) failed=$((failed + f)) skipped=$((skipped + s))
    echo "$name: $((p - s)) passed, $f failed, $s skipped"
}

# Kernels that no part of a test ran, with the reason, from the log of a stream.
not_run() { # LOG
    awk '{ sub(/^ +/, "") }
        /^[a-z_]+ [^ ]+ at .*: [0-9]+ cases$/ { sub(/: [0-9]+ cases$/, ""); ran[$0] = 1 }
        /^not run: / { kernel = $0; sub(/^not run: /, "", kernel); sub(/: .*/, "", kernel); of[$0] = kernel }
        END { for (line in of) if (!(of[line] in ran)) print line }' "$1" | sort
}

have_nextest() { [ "${OCELLI_NEXTEST:-1}" != 0 ] && cargo nextest --version >/dev/null 2>&1; }
nextest=no
have_nextest && nextest=yes

# Software Vulkan drivers. The first has every feature that the kernels know, cooperative matrices included, but only cargo's
# test programs can use it; golden models and the command line run on lavapipe of this release.
drivers="matrices swiftshader"

# Writes the environment that makes programs use a driver, or why it cannot be had.
driver_env() { # DRIVER
    [ -s "$logs/$1.env" ] || tests/vulkan.sh "$1" >"$logs/$1.env" 2>"$logs/$1.why"
}

on_driver() { # DRIVER COMMAND...
    local driver=$1
    shift
    (
        eval "$(cat "$logs/$driver.env")"
        export OCELLI_REQUIRE="${OCELLI_REQUIRE:+$OCELLI_REQUIRE,}wgpu"
        "$@"
    )
}

# Runs a command with lavapipe where that can be had; else its tests of wgpu skip.
with_lavapipe() {
    if driver_env lavapipe; then on_driver lavapipe "$@"; else "$@"; fi
}

# Finds the environment that makes programs use NVIDIA's compiler, or why it cannot be had.
nvrtc=
nvrtc_env() { [ -n "$nvrtc" ] || nvrtc=$(tests/nvrtc.sh 2>"$logs/nvrtc.why"); }

# Runs a command with the compiler where that can be had; else what needs it skips.
with_nvrtc() { # COMMAND...
    if ! nvrtc_env; then
        "$@"
        return
    fi
    (
        eval "$nvrtc"
        export OCELLI_REQUIRE="${OCELLI_REQUIRE:+$OCELLI_REQUIRE,}nvrtc,nvdisasm"
        "$@"
    )
}

# Runs a command with tokenizers of published models where they can be had; else what needs them skips.
with_tokenizers() { # COMMAND...
    local env
    if ! env=$(tests/tokenizers.sh 2>"$logs/tokenizers.why"); then
        echo "tokenizers: $(cat "$logs/tokenizers.why")"
        "$@"
        return
    fi
    (
        eval "$env"
        export OCELLI_REQUIRE="${OCELLI_REQUIRE:+$OCELLI_REQUIRE,}tokenizers"
        "$@"
    )
}

# Runs a command with OpenAI's clients where they can be had; else what needs them skips.
with_clients() { # COMMAND...
    local env code=0
    env=$(tests/clients.sh 2>"$logs/clients.why") || code=1
    [ -s "$logs/clients.why" ] && cat "$logs/clients.why"
    if [ $code -ne 0 ]; then
        "$@"
        return
    fi
    (
        eval "$env"
        "$@"
    )
}

# Always the whole workspace and one profile, so that every stream shares its artefacts.
tests() { # CARGO SELECTION...
    if [ $nextest = yes ]; then
        cargo nextest run --release --locked --workspace --color never --no-tests pass \
            --status-level pass --final-status-level fail --success-output final "$@"
    else
        cargo test --release --locked --workspace --no-fail-fast "$@" -- --show-output
    fi
}

# Builds the command itself, which some tests run.
bins() { # STREAM
    cargo build --release --locked --workspace --bins >"$logs/$1-build.log" 2>&1 && return
    tail -n 40 "$logs/$1-build.log"
    failed=$((failed + 1)) broken+=("$1")
    return 1
}

stream() {
    local level
    case $1 in
        fmt)
            if cargo fmt --version >/dev/null 2>&1; then whole fmt cargo fmt --all --check
            else skip fmt "rustfmt is not installed"; fi ;;
        clippy)
            if cargo clippy --version >/dev/null 2>&1; then
                whole clippy cargo clippy --release --locked --workspace --all-targets -- -D warnings
            else skip clippy "clippy is not installed"; fi ;;
        docs)
            RUSTDOCFLAGS="-D warnings" whole docs cargo doc --release --locked --workspace --no-deps ;;
        features)
            # Without any, and with each that needs no device.
            for of in "" otlp; do
                whole "features${of:+-$of}" cargo check --release --locked -p ocelli --no-default-features --features "$of"
            done ;;
        unit) counted unit tests --lib --bins ;;
        doctest) counted doctest cargo test --release --locked --workspace --doc ;;
        wgpu)
            for driver in $drivers; do
                if driver_env "$driver"; then
                    # What plain WebGPU runs is the same everywhere: the last driver runs it, once, and each what needs more.
                    plain=(-E 'not test(/^baseline::/)')
                    [ "$driver" = "${drivers##* }" ] && plain=()
                    [ $nextest = yes ] || plain=()
                    OCELLI_WGPU_ONCE=1 counted "wgpu on $driver" on_driver "$driver" tests --test wgpu "${plain[@]}"
                    # What no case could run on this driver, with the reason and the number of kernels.
                    not_run "$logs/wgpu-on-$driver.log" |
                        sed -E 's/^not run: .* (at [a-z]+): /\1: /' | sort | uniq -c |
                        sed -E 's/^ *([0-9]+) (at [a-z]+): /not run \2: \1 kernels: /; s/^ *[0-9]+ not run: /not run: /'
                else
                    skip wgpu "$driver: $(cat "$logs/$driver.why")"
                fi
            done ;;
        cuda)
            nvrtc_env || skip nvrtc "$(cat "$logs/nvrtc.why")"
            # Those of a pack for a GPU, for a run on the stand-in for the driver.
            local programs=$PWD/${CARGO_TARGET_DIR:-target}/gpu/programs
            case ${CARGO_TARGET_DIR:-} in /*) programs=$CARGO_TARGET_DIR/gpu/programs ;; esac
            if tests/gpu.sh programs "$programs" >"$logs/cuda-build.log" 2>&1; then
                OCELLI_PROGRAMS=$programs OCELLI_REQUIRE="${OCELLI_REQUIRE:+$OCELLI_REQUIRE,}programs" counted cuda with_nvrtc tests --test cuda
            else
                tail -n 40 "$logs/cuda-build.log"
                failed=$((failed + 1)) broken+=(cuda)
                counted cuda with_nvrtc tests --test cuda
            fi
            # What ran where: rows emulated, kernels compiled, rows refused.
            grep -hoE '^ *(compiled for|refused on) .*' "$logs/cuda.log" | sed -E 's/^ +//' | sort -u
            not_run "$logs/cuda.log"
            printf 'emulated: %s rows\n' "$(sed -nE 's/^ *([a-z_]+ [a-z0-9-]+ at emulated [a-z0-9_]+): [0-9]+ cases$/\1/p' "$logs/cuda.log" | sort -u | wc -l)" ;;
        text) counted text with_tokenizers tests --test text ;;
        serve)
            if bins serve; then
                counted serve with_clients tests --test serve
                grep -hoE '[0-9]+ answered, [0-9]+ refused in .*' "$logs/serve.log" | sort -u
            fi ;;
        batch)
            local only=(batch::)
            [ $nextest = yes ] && only=(-E 'test(/^batch::/)')
            if bins batch; then counted batch tests --test cli "${only[@]}"; fi ;;
        train)
            if bins train; then
                counted train tests --test train
                counted peft tests/peft.sh
            fi ;;
        python) if bins python; then counted python tests/python.sh; fi ;;
        *)
            case $1 in cli | search) bins "$1" || return ;; esac
            case $by_level in
                *" $1 "*)
                    for level in $(levels); do
                        OCELLI_ISA=$level counted "$1 $level" with_nvrtc with_lavapipe tests --test "$1"
                    done
                    ;;
                *) counted "$1" with_lavapipe tests --test "$1" ;;
            esac
            # Families, cases and stages, as they were compared in f32.
            [ "$1" = golden ] && grep -hoE 'parity: .*' "$logs/golden.log" | sort -u
            if [ "$1" = conformance ]; then
                for level in $(missing_levels); do
                    skip "$level" "this machine does not have the level, no kernel is tested with it"
                done
            fi ;;
    esac
}

if [ "${1:-}" = --list ]; then
    printf '%s\n' $streams $parts
    exit 0
fi
[ $# -eq 0 ] && set -- $streams
for name in "$@"; do
    case " $streams $parts " in *" $name "*) ;; *)
        echo "error: no stream $name; there are: $streams $parts" >&2
        exit 2 ;;
    esac
done
# Large, and not wanted before other streams are through.
case " $* " in *" train "*) nice tests/peft.sh fetch & ;; esac
for name in "$@"; do
    begin=$SECONDS
    echo "== $name"
    stream "$name"
    echo "== $name took $((SECONDS - begin)) s"
done

if [ -s "$logs/times" ]; then
    echo
    echo "slowest tests:"
    sort -rn "$logs/times" | head -n 10
fi
echo
[ ${#broken[@]} -gt 0 ] && echo "failed in: ${broken[*]}; see $logs/"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
