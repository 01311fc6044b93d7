#!/usr/bin/env bash
# Fetches OpenAI's clients for Python and JavaScript, and what drives a browser, into target/clients/, and prints the environment that makes the tests use them:
#
#   eval "$(tests/clients.sh)"
#
# Says on standard error which of them cannot be had, and why, and fails if none can.
set -u -o pipefail
cd "$(dirname "$0")/.."
root=${CARGO_TARGET_DIR:-$PWD/target}/clients
case $root in /*) ;; *) root=$PWD/$root ;; esac
mkdir -p "$root"

python() {
    [ -e "$root/python/complete" ] && return
    command -v python3 >/dev/null || { echo "there is no python3 here"; return 1; }
    rm -rf "$root/python"
    python3 -m venv "$root/python" && timeout 300 "$root/python/bin/pip" install --quiet --disable-pip-version-check "openai==2.*" ||
        { echo "pip could not install openai"; return 1; }
    touch "$root/python/complete"
}

node() {
    [ -e "$root/node/complete" ] && return
    command -v node >/dev/null && command -v npm >/dev/null || { echo "there is no node with npm here"; return 1; }
    rm -rf "$root/node" && mkdir -p "$root/node"
    (cd "$root/node" && timeout 300 npm install --silent --no-audit --no-fund --ignore-scripts openai@6 puppeteer-core@24) ||
        { echo "npm could not install openai and puppeteer-core"; return 1; }
    touch "$root/node/complete"
}

code=1
if python >"$root/python.log" 2>&1; then
    printf 'export OCELLI_OPENAI_PYTHON=%q\n' "$root/python/bin/python"
    code=0
else
    echo "openai-python: $(tail -n 1 "$root/python.log")" >&2
fi
if node >"$root/node.log" 2>&1; then
    printf 'export OCELLI_OPENAI_NODE=%q\n' "$root/node/node_modules"
    printf 'export OCELLI_PUPPETEER=%q\n' "$root/node/node_modules"
    code=0
else
    echo "openai-javascript: $(tail -n 1 "$root/node.log")" >&2
fi
exit $code
