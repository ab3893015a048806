"""How long compression takes and how much memory it needs.

    resnet50    a ResNet-50-shaped network, BatchNormalization kept, 102 MB in one file
    external    180 MatMul layers, 3.0 GB of external data, opset 17
    resnet18    a ResNet-18-shaped one, 47 MB
    face        a face network's shape, 29 3x3 convolutions, --speedup 1.2 on random images, latency table included
    ppocr       the PP-OCRv4 text line reader, --speedup 1.3 on its calibration lines, latency table included
    data        MobileNetV2, ranks and factors fitted to 512 images, nothing cached
    in-turn     the same with --asymmetric

`resnet18` and `resnet50` run `trp-onnx compress --macs 0.9` as a user would, simplify and verify included, `external`
`--macs 0.6`, `data` and `in-turn` `--macs 0.85 --data`. Nothing is cached. `--package` names a checkout to measure in
place of this one, an older commit say; rows are told apart by commit. Memory is polled from
/proc while it runs: `private` is what the process itself allocates; `resident` also counts pages of mapped
weight files, which the kernel takes back whenever it wants. `--cgroup DIR` runs it in a memory control group
with a hard limit on both (make one with a limit of 1.5 GB to see that it is enough).

    python benchmarks/speed.py [--only resnet50] [--only external] [--folder DIR]
    python benchmarks/speed.py --only ppocr --ppocr ONNX --lines ppocr_rec_cal.npz
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
from _networks import face, resnet18, resnet50
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


def images(folder: Path) -> Path:
    """Random smooth ones, for the face network."""
    coarse = np.random.default_rng(0).standard_normal((256, 14, 14, 3)).astype(np.float32)
    path = folder / "images.npz"
    np.savez(path, x=coarse.repeat(8, axis=1).repeat(8, axis=2))
    return path


def measure(path: Path, cgroup: Path | None, options: Sequence[str], package: Path) -> dict[str, object]:
    """Run the command of a checkout once and watch it."""

    def enter() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    out, report = path.with_name("out.onnx"), path.with_name("out.json")
    command = [sys.executable, "-m", "trp_onnx", "compress", path, "-o", out, "--json", report, "-q", *options]
    for file in path.parent.iterdir():
        _out_of_cache(file)
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, preexec_fn=enter, cwd=path.parent,
                               env=os.environ | {"TRP_ONNX_CACHE": str(path.with_name("cache")),
                                                "PYTHONPATH": str(package)})  # fmt: skip
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


def commit_of(package: Path) -> str:
    """Of a checkout."""
    found = subprocess.run(
        ["git", "-C", package, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


HERE = Path(__file__).resolve().parents[1]
BUILT = {
    "resnet18": (resnet18, "0.9"),
    "resnet50": (resnet50, "0.9"),
    "external": (external, "0.6"),
}
TIMED = ("face", "ppocr")
_PREPROCESSING = ["--scale", "1/127.5", "--mean", "1", "--crop", "224", "--label-offset", "1"]
FITTED = {"data": _PREPROCESSING, "in-turn": [*_PREPROCESSING, "--asymmetric"]}


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*BUILT, *TIMED, *FITTED], help="may be repeated")
    parser.add_argument("--package", type=Path, default=HERE, help="the checkout to measure; this one")
    parser.add_argument("--ppocr", type=Path, help="ch_PP-OCRv4_rec")
    parser.add_argument("--lines", type=Path, help="an .npz of its input lines, (n, 3, 48, 320)")
    parser.add_argument("--mobilenet", type=Path, help="MobileNetV2, RGB x/127.5-1, 1001 outputs")
    parser.add_argument("--images", type=Path, help="an .npz of 256x256 images")
    parser.add_argument("--folder", type=Path, help="where the models are built (5 GB); a temporary folder otherwise")
    parser.add_argument(
        "--cgroup", type=Path, help="run inside this memory control group, whose limit counts all pages"
    )
    arguments = parser.parse_args()
    results = Results("speed", key=("model", "commit"))
    package = arguments.package.resolve()
    for name in arguments.only or BUILT:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            place = Path(folder).resolve()
            if name in BUILT:
                build, ratio = BUILT[name]
                path, options = build(place), ["--macs", ratio]
            elif name == "face":
                path, options = face(place), ["--speedup", "1.2", "--data", str(images(place))]
            elif name == "ppocr":
                path = Path(shutil.copy(arguments.ppocr, place))
                options = [
                    "--speedup",
                    "1.3",
                    "--data",
                    str(arguments.lines.resolve()),
                    "--input-shape",
                    "x:1,3,48,320",
                ]
            else:
                path = Path(shutil.copy(arguments.mobilenet, place))
                options = ["--macs", "0.85", "--data", str(arguments.images.resolve()), *FITTED[name]]
            row = {"model": name, "commit": commit_of(package)}
            results.add(row | measure(path, arguments.cgroup, options, package))
    columns = ("model", "commit", "file_mb", "seconds", "private_mb", "resident_mb", "limit_mb", "macs_ratio")
    print(markdown(columns, [[row.get(c) for c in columns] for row in results.rows]))


if __name__ == "__main__":
    main()
