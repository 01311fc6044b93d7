#!/usr/bin/env bash
# Builds llama.cpp's llama-bench and llama-server for this machine from the source distribution of llama-cpp-python, into target/peers/llama.
#
#   bench/peers/llama.sh            needs Python with venv, a C++ compiler, and PyPI
set -eu
cd "$(dirname "$0")/../.."
version=0.3.36
dir=target/peers
mkdir -p "$dir"
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" -q install cmake ninja
"$dir/venv/bin/pip" -q download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d "$dir"
tar xzf "$dir"/llama_cpp_python-$version.tar.gz -C "$dir"
export PATH="$PWD/$dir/venv/bin:$PATH"
cmake -S "$dir/llama_cpp_python-$version/vendor/llama.cpp" -B "$dir/llama" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
ninja -C "$dir/llama" llama-bench llama-server
echo "$dir/llama/bin/llama-bench" "$dir/llama/bin/llama-server"
