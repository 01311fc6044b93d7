#!/usr/bin/env bash
# Fetches NVIDIA's run-time compiler, of the last two major versions of CUDA, and its disassembler from PyPI into target/nvrtc/,
# without installing anything, and prints the environment that makes the tests use them:
#
#   eval "$(tests/nvrtc.sh)"
#
# Fails with a reason on standard error where that cannot be done: no Python with pip, no network, no package for this system.
set -eu -o pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-$PWD/target}/nvrtc
case $root in /*) ;; *) root=$PWD/$root ;; esac
# The first compiler is older than the disassembler on purpose: its code runs on drivers of CUDA 12 too. The second is what machines
# with newer drivers have.
packages="nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvdisasm==13.5.37"

refuse() { # WHY
    echo "$1" >&2
    exit 1
}

pip() {
    local python
    for python in python3 python; do
        if command -v $python >/dev/null && $python -m pip --version >/dev/null 2>&1; then
            $python -m pip "$@"
            return
        fi
    done
    refuse "there is no Python with pip here"
}

if [ "$(cat "$root/complete" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$root.new" && mkdir -p "$root.new"
    # shellcheck disable=SC2086 # one word a package
    pip install --quiet --disable-pip-version-check --no-deps --no-compile --root-user-action ignore \
        --target "$root.new" $packages >"$root.new/pip.log" 2>&1 || {
        tail -n 3 "$root.new/pip.log" >&2
        refuse "pip could not fetch $packages"
    }
    rm -rf "$root"
    mv "$root.new" "$root"
    echo "$packages" >"$root/complete"
fi
library=$(find "$root" -name 'libnvrtc.so.12*' | head -n 1)
newer=$(find "$root" -name 'libnvrtc.so.13*' | head -n 1)
disassembler=$(find "$root" -name nvdisasm -type f | head -n 1)
[ -n "$library" ] && [ -n "$newer" ] && [ -n "$disassembler" ] || refuse "the packages hold no libnvrtc or no nvdisasm"
chmod +x "$disassembler"
printf 'export OCELLI_NVRTC=%q OCELLI_NVRTC_NEWER=%q OCELLI_NVDISASM=%q\n' "$library" "$newer" "$disassembler"
