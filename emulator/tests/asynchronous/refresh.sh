#!/usr/bin/env bash
# Compiles the kernels of this folder to the PTX beside them. Needs nvcc (CUDA 12.8 or newer) in PATH.
set -euo pipefail
cd "$(dirname "$0")"
for source in *.cu; do
  nvcc -ptx -O3 -std=c++17 -gencode arch=compute_90a,code=compute_90a "$source" -o "${source%.cu}.ptx"
done
