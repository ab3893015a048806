#!/usr/bin/env bash
# Other runtimes for tests and benchmarks, each in a folder of its own under DIR; what cannot be had is left out.
#
#   benchmarks/other_runtimes.sh DIR [olive] && TRP_ONNX_RUNTIMES=DIR pytest
set -uo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

make() {  # NAME PACKAGE...
    [ -x "$folder/$1/bin/python" ] && return
    echo "$1"
    python3 -m venv "$folder/$1" && "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "${@:2}" ||
        rm -rf "${folder:?}/$1"
}

make 1.19.2 onnxruntime==1.19.2 onnx==1.17.0 'numpy<2.3'
make openvino onnxruntime-openvino openvino numpy  # takes the place of onnxruntime: never in one environment with it
make qnn onnxruntime-qnn numpy
[ -x "$folder/arm64/python" ] || bash "$here/arm64_root.sh" "$folder/arm64" || rm -rf "$folder/arm64"
[ "${2:-}" != olive ] || make olive olive-ai==0.13.0 requests onnxruntime "$here/.."  # gigabytes: it wants torch
exit 0
