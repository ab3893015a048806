"""How long compression takes and how much memory it needs.

    resnet50    a ResNet-50-shaped network, BatchNormalization kept, 102 MB in one file
    external    180 MatMul layers, 3.0 GB of external data, opset 17
    data        MobileNetV2, ranks and factors fitted to 512 images, nothing cached
    in-turn     the same with --asymmetric

The first two run `trp-onnx compress --macs 0.6` as a user would, simplify and verify included, the others
`--macs 0.85 --data`. Memory is polled from
/proc while it runs: `private` is what the process itself allocates; `resident` also counts pages of mapped
weight files, which the kernel takes back whenever it wants. `--cgroup DIR` runs it in a memory control group
with a hard limit on both (make one with a limit of 1.5 GB to see that it is enough).

    python benchmarks/speed.py [--only resnet50] [--only external] [--folder DIR]
    python benchmarks/speed.py --only data --only in-turn --mobilenet ONNX --images imagenet_sample.npz
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from _networks import resnet50
from _results import Results, markdown
from onnx import TensorProto, helper

EXTERNAL_LAYERS = 180


def external(folder: Path) -> Path:
    """Feed-forward layers 1024 -> 4096 -> 1024, 16.8 MB each, written straight to the data file."""
    rng = np.random.default_rng(0)
    nodes, weights, flow, offset = [], [], "x", 0
    with (folder / "external.onnx.data").open("wb") as data:
        for i in range(EXTERNAL_LAYERS):
            shape = (1024, 4096) if i % 2 == 0 else (4096, 1024)
            array = rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / shape[0]) ** 0.5)
            data.write(array.tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "external.onnx.data", "offset": str(offset), "length": str(array.nbytes)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            offset += array.nbytes
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [flow, f"w{i}"], [f"y{i}"], name=f"fc{i}"))
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"r{i}"], name=f"relu{i}"))
            flow = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1024])],
        [helper.make_tensor_value_info(flow, TensorProto.FLOAT, ["N", None])],
        weights,
    )
    path = folder / "external.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def measure(path: Path, cgroup: Path | None, options: Sequence[str]) -> dict[str, object]:
    """Run the command once and watch it."""

    def enter() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    out, report = path.with_name("out.onnx"), path.with_name("out.json")
    command = [sys.executable, "-m", "trp_onnx", "compress", path, "-o", out, "--json", report, "-q", *options]
    for file in path.parent.iterdir():
        _out_of_cache(file)
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, preexec_fn=enter,
                               env=os.environ | {"TRP_ONNX_CACHE": str(path.with_name("cache"))})  # fmt: skip
    private = resident = 0
    while process.poll() is None:
        now = _memory(process.pid)
        private, resident = max(private, now[0]), max(resident, now[1])
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the command failed with exit code {process.returncode}")
    document = json.loads(report.read_text())
    return {
        "file_mb": round(document["file_bytes"]["before"] / 1e6),
        "seconds": round(seconds, 1),
        "private_mb": round(private / 1e3),
        "resident_mb": round(resident / 1e3),
        "limit_mb": _limit_mb(cgroup),
        "macs_ratio": round(document["macs"]["ratio"], 4),
        "phases": document["seconds"],
    }


def _out_of_cache(file: Path) -> None:
    """Pages that the builder left in the cache would be read for free, outside the control group."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _limit_mb(cgroup: Path | None) -> int | None:
    """The memory limit of a control group, page cache included."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        if cgroup is not None and (cgroup / name).exists():
            return round(int((cgroup / name).read_text()) / 1e6)
    return None


def _memory(pid: int) -> tuple[int, int]:
    """Private and resident kB of a process now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return int(values.get("RssAnon", 0)), int(values.get("VmRSS", 0))


BUILT = {"resnet50": resnet50, "external": external}
_PREPROCESSING = ["--scale", "1/127.5", "--mean", "1", "--crop", "224", "--label-offset", "1"]
FITTED = {"data": _PREPROCESSING, "in-turn": [*_PREPROCESSING, "--asymmetric"]}


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*BUILT, *FITTED], help="may be repeated")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, RGB x/127.5-1, 1001 outputs")
    parser.add_argument("--images", type=Path, help="an .npz of 256x256 images")
    parser.add_argument("--folder", type=Path, help="where the models are built (5 GB); a temporary folder otherwise")
    parser.add_argument(
        "--cgroup", type=Path, help="run inside this memory control group, whose limit counts all pages"
    )
    arguments = parser.parse_args()
    results = Results("speed", key=("model",))
    for name in arguments.only or BUILT:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            if name in BUILT:
                path, options = BUILT[name](Path(folder)), ["--macs", "0.6"]
            else:
                path = Path(shutil.copy(arguments.mobilenet, folder))
                options = ["--macs", "0.85", "--data", str(arguments.images), *FITTED[name]]
            results.add({"model": name} | measure(path, arguments.cgroup, options))
    columns = ("model", "file_mb", "seconds", "private_mb", "resident_mb", "limit_mb", "macs_ratio")
    print(markdown(columns, [[row.get(c) for c in columns] for row in results.rows]))


if __name__ == "__main__":
    main()
