"""What ships: each network as .onnx, .ort, int8 and int8 .ort: bytes, accuracy, error against its source, time.

    python benchmarks/edge.py --models DIR --data DIR --compressed NET=FILE ... [--python PATH]

--compressed names a low-rank file of a network (ResNet-56 by `trp_cifar10.py`, the others by `without_training.py`).
`resnet18` is a ResNet-18-shaped network with random weights, dense and at half its MACs: time alone.
Times are of .onnx against .onnx and of .ort against .ort, each in one interleaved run. PATH is an interpreter with
another onnxruntime: .ort files of this one are run there, and one made there is run here.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _networks import resnet18
from _results import Results, Row, by_network, markdown, name_of
from without_training import NETS, split

import trp_onnx
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import feeds_for, relative_error
from trp_onnx.runners import open_runner

CONVERT = (
    "import sys, pathlib; from onnxruntime.tools.convert_onnx_models_to_ort import *; "
    "convert_onnx_models_to_ort(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [OptimizationStyle.Fixed])"
)


def main() -> None:
    """Measure the rows that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--compressed", action="append", default=[], metavar="NET=FILE")
    parser.add_argument("--python", help="an interpreter with another onnxruntime")
    parser.add_argument("nets", nargs="*", default=[*NETS, "resnet18"])
    arguments = parser.parse_args()
    compressed = dict(entry.split("=", 1) for entry in arguments.compressed)
    results = Results("edge", key=("net", "file"))
    for net in arguments.nets:
        with tempfile.TemporaryDirectory() as folder:
            if net == "resnet18":
                for row in [] if results.has(net=net, file="low rank, int8") else time_alone(Path(folder)):
                    results.add(row)
                    print(row, flush=True)
                continue
            files = {"dense": arguments.models / NETS[net].file}
            if net in compressed:
                files["low rank"] = Path(compressed[net])
            if not all(results.has(net=net, file=f"{name}, int8, .ort") for name in files):
                for row in measure(net, files, Path(folder), arguments):
                    results.add(row)
                    print(row, flush=True)
    print(table(results.rows))


def measure(net: str, files: dict[str, Path], folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All files of one network."""
    fitted, test = split(NETS[net], arguments.data)
    int8: dict[str, trp_onnx.Quantized] = {}
    made = {"onnx": dict(files), "ort": {}}
    for name, file in files.items():
        path = folder / f"{name.replace(' ', '-')}-int8.onnx"
        int8[name] = trp_onnx.quantize(file, path, fitted)
        made["onnx"][f"{name}, int8"] = path
    exports = {}
    for name, file in made["onnx"].items():
        place = folder / name.replace(", ", "-").replace(" ", "-")
        exports[name] = trp_onnx.export(file, place)
        made["ort"][name] = place / f"{file.stem}.ort"
    rows = []
    feeds = feeds_for(open_model(files["dense"]))
    np.savez(folder / "feeds.npz", **feeds)
    for kind, paths in made.items():
        timed = trp_onnx.bench(list(paths.values()), inputs=folder / "feeds.npz")
        for (name, path), contender in zip(paths.items(), timed.contenders, strict=True):
            row: dict[str, Any] = {
                "net": net, "file": name if kind == "onnx" else f"{name}, .ort", "bytes": path.stat().st_size,
                "top1": round(trp_onnx.evaluate(path, test).value / 100, 4), "samples": len(test),
                "speedup": round(contender.ratio.median, 3), "low": round(contender.ratio.low, 3),
                "high": round(contender.ratio.high, 3),
            }  # fmt: skip
            if kind == "ort":
                row["error"] = max(exports[name].manifest["comparison"]["relative_errors"].values())
                if arguments.python:
                    row |= there_and_back(path, made["onnx"][name], feeds, folder, arguments.python)
            if name.endswith("int8"):
                found = int8[name.removesuffix(", int8")]
                row |= {"in_float": len(found.in_float), "lost": round(found.lost / 100, 4)}
            rows.append(row)
    return rows


def time_alone(folder: Path) -> list[dict[str, Any]]:
    """A ResNet-18-shaped network and half of it, in float and in int8."""
    dense, small = resnet18(folder), folder / "small.onnx"
    trp_onnx.compress(dense, small, trp_onnx.Goal(macs=0.5), search=trp_onnx.SearchSpace(align=16))
    noise = np.random.default_rng(0).standard_normal((64, 224, 224, 3)).astype(np.float32)
    np.savez(folder / "noise.npz", x=noise)
    found = trp_onnx.quantize(small, folder / "int8.onnx", folder / "noise.npz", original=dense, max_drop=99)
    names = {"original": "dense", "original, int8": "dense, int8", "float": "low rank", "int8": "low rank, int8"}
    return [
        {
            "net": "resnet18", "file": names[variant.name], "bytes": variant.bytes,
            "speedup": round(variant.ratio.median, 3), "low": round(variant.ratio.low, 3),
            "high": round(variant.ratio.high, 3),
        }
        for variant in found.variants
    ]  # fmt: skip


def there_and_back(ort: Path, source: Path, feeds: dict[str, np.ndarray], folder: Path, python: str) -> dict[str, Any]:
    """Relative error of this .ort in the other runtime, and of one made there in this one."""
    theirs = folder / f"back-{ort.parent.name}"
    subprocess.run([python, "-c", CONVERT, str(source), str(theirs)], check=True, capture_output=True)
    with open_runner() as here, open_runner(f"python:{python}") as there:
        here.prepare([source, theirs / f"{source.stem}.ort"], feeds)
        there.prepare([ort], feeds)
        (expected, back), (elsewhere,) = here.outputs(), there.outputs()
    worst = {
        key: max(relative_error(array, found[name]) for name, array in expected.items())
        for key, found in (("elsewhere", elsewhere), ("back", back))
    }
    return {key: float(f"{error:.2g}") for key, error in worst.items()}


FILES = {"dense": "dense", "low rank": "low rank", "dense, int8": "int8", "low rank, int8": "low rank + int8"}


def table(measured: Sequence[Row]) -> str:
    """Networks and files down; `.onnx`, then `.ort`."""
    found = {(row["net"], row["file"]): row for row in measured}
    lines = []
    for net in dict.fromkeys(row["net"] for row in by_network(measured)):
        for file in (file for file in FILES if (net, file) in found):
            row, ort = found[net, file], found.get((net, f"{file}, .ort"))
            top1 = f"{row['top1']:.2%}" if "top1" in row else ""
            last = ("", "", "") if ort is None else (*_size_and_speed(ort), f"{ort['error']:.0e}".replace("0e+00", "0"))
            size, speed = _size_and_speed(row)
            lines.append((name_of(net), FILES[file], size, top1, speed, *last))
    return markdown(("network", "", "`.onnx`", "top-1", "speed-up", "`.ort`", "speed-up", "error of the `.ort`"), lines)


def _size_and_speed(row: Row) -> tuple[str, str]:
    return f"{row['bytes'] / 1e6:.2f} MB", f"{row['speedup']:.2f}x"


if __name__ == "__main__":
    main()
