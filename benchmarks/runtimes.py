"""One speed-up in every runtime: dense against compressed, one thread, the same files, turns taken inside each.

    python benchmarks/runtimes.py --models DIR --python PATH

PATH is an interpreter with another onnxruntime (1.19.2 in the results). Node's and the browser's come by npm on first
use. The compressed files are planned by MACs with ranks in blocks of 16, so that every kernel has its chance.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _networks import resnet18
from _results import Results, Row, markdown, name_of

import trp_onnx
from trp_onnx.runners import open_runner

FILES = {
    "resnet56": "resnet56_cifar10.onnx",
    "squeezenet": "squeezenet1.1_imagenet.onnx",
    "mobilenet_v2": "mobilenet_v2_1.0_224_imagenet_a.onnx",
}
MACS = 0.5


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--python", help="an interpreter with another onnxruntime")
    arguments = parser.parse_args()
    places = [("local", "cpu"), ("local", "cpu-im2col"), ("node", "cpu"), ("node", "cpu-im2col"), ("web", "cpu")]
    if arguments.python:
        places[2:2] = [(f"python:{arguments.python}", "cpu"), (f"python:{arguments.python}", "cpu-im2col")]
    results = Results("runtimes", key=("net", "where", "provider"))
    with tempfile.TemporaryDirectory() as folder:
        models = {name: arguments.models / file for name, file in FILES.items()}
        models["resnet18"] = resnet18(Path(folder))
        for name, dense in models.items():
            small = Path(folder) / f"{name}-small.onnx"
            search = trp_onnx.SearchSpace(align=16)
            ratio = trp_onnx.compress(dense, small, trp_onnx.Goal(macs=MACS), search=search).report.macs.ratio
            for runtime, provider in places:
                with open_runner(runtime) as runner:
                    here = runner.describe()
                where = str(here)
                if results.has(net=name, where=where, provider=provider):
                    continue
                found = trp_onnx.bench([dense, small], provider=provider, runtime=runtime)
                speedup = found.contenders[1].ratio
                results.add({
                    "net": name, "where": where, "provider": provider, "macs_ratio": round(ratio, 4),
                    "milliseconds": round(found.contenders[0].milliseconds, 3), "speedup": round(speedup.median, 3),
                    "low": round(speedup.low, 3), "high": round(speedup.high, 3), "rounds": found.rounds,
                })  # fmt: skip
                print(results.rows[-1], flush=True)
    print(table(results.rows))


KERNELS = {"cpu": "blocked layout", "cpu-im2col": "im2col"}


def table(measured: Sequence[Row]) -> str:
    """Runtimes and kernels down, networks across."""
    nets = list(dict.fromkeys(row["net"] for row in measured))
    lines = []
    for where, provider in dict.fromkeys((row["where"], row["provider"]) for row in measured):
        found = {row["net"]: row for row in measured if (row["where"], row["provider"]) == (where, provider)}
        kernels = "WebAssembly SIMD" if where.startswith("onnxruntime-web") else KERNELS[provider]
        lines.append((where, kernels, *(f"{found[net]['speedup']:.2f}x" if net in found else "" for net in nets)))
    return markdown(("half the MACs, one thread: speed-up in", "kernels", *(name_of(net) for net in nets)), lines)


if __name__ == "__main__":
    main()
