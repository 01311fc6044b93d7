#!/usr/bin/env bash
# Builds the Python package, installs it into an environment of its own in target/python/, and tests it there.
#
#   tests/python.sh           prints `skipped: what: why` for what cannot be had: `python` (python3 with pip and maturin), `ray`, `mlx`
#
# OCELLI_REQUIRE names, with commas between, what must not be skipped (`all` for everything). Needs target/release/ocelli.
set -u -o pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
root=$target/python
mkdir -p "$root"

absent() { # WHAT WHY
    case ",${OCELLI_REQUIRE:-}," in *",$1,"* | *",all,"*)
        echo "$1 is required by OCELLI_REQUIRE=$OCELLI_REQUIRE, but $2"
        exit 1 ;;
    esac
    echo "skipped: $1: $2"
}

install() { # MARK PACKAGE...
    [ -e "$root/$1" ] && return
    local mark=$1
    shift
    timeout 400 "$root/env/bin/pip" install --quiet --disable-pip-version-check "$@" >"$root/pip.log" 2>&1 || return 1
    touch "$root/$mark"
}

ended() { # PASSED FAILED
    echo "test result: done. $1 passed; $2 failed;"
    [ "$2" -eq 0 ]
    exit
}

if ! command -v python3 >/dev/null; then
    absent python "there is no python3 here"
    ended 1 0
fi
if [ ! -e "$root/packages" ]; then
    rm -rf "$root/env"
    if ! python3 -m venv "$root/env" 2>"$root/pip.log" || ! install packages "maturin>=1.9,<2" "numpy>=1.21" pillow pytest; then
        absent python "pip could not install maturin, numpy, pillow and pytest: $(tail -n 1 "$root/pip.log")"
        ended 1 0
    fi
fi

# Cargo as maturin is to run it: it asks for one package, whose dependencies would be compiled once more with the features that this one
# asks for; of the whole workspace they are there already.
cat >"$root/cargo" <<'SCRIPT'
#!/usr/bin/env bash
if [ "${1:-}" != rustc ]; then exec cargo "$@"; fi
shift
args=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    args+=("$1")
    shift
done
exec cargo build --workspace "${args[@]}"
SCRIPT
chmod +x "$root/cargo"
rm -rf "$root/wheels"
CARGO=$root/cargo "$root/env/bin/maturin" build --release --locked --manifest-path engine/python/Cargo.toml --target-dir "$target" \
    --interpreter "$root/env/bin/python" --out "$root/wheels" 2>&1 || exit 1
"$root/env/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$root"/wheels/*.whl || exit 1

files=tests/python/test_model.py skipped=0
if install ray "ray[data,serve]>=2.40"; then
    files="$files tests/python/test_ray.py"
else
    absent ray "pip could not install ray: $(tail -n 1 "$root/pip.log")"
    skipped=1
fi
if install mlx "mlx[cpu]>=0.32"; then
    files="$files tests/python/test_quantized.py"
else
    absent mlx "pip could not install mlx: $(tail -n 1 "$root/pip.log")"
    skipped=$((skipped + 1))
fi
export RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR=${RAY_TMPDIR:-/tmp} OCELLI_CACHE=$root/no-cache HF_HUB_OFFLINE=1
timeout 600 "$root/env/bin/python" -m pytest -q -p no:cacheprovider -p no:warnings --durations=5 $files 2>&1 | tee "$root/pytest.log"
code=$?
passed=$(grep -oE '[0-9]+ passed' "$root/pytest.log" | tail -n 1 | tr -dc 0-9)
failed=$(grep -oE '[0-9]+ (failed|error)' "$root/pytest.log" | awk '{ sum += $1 } END { print sum }')
[ $code -ne 0 ] && [ "${failed:-0}" -eq 0 ] && failed=1
ended $((${passed:-0} + skipped)) "${failed:-0}"
