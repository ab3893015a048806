"""Training with projection on networks that are no CIFAR ResNets: a few hundred steps each, without labels.

    python benchmarks/training_generality.py --models DIR --imagenet imagenet_sample.npz

SqueezeNet and MobileNetV2 on an ImageNet sample (900 of its images to train on, 100 held out), a speech
embedding, a 1-d convolutional net and a MatMul net on generated signals. What is held to the original is the
output itself. Reported: the distance on held-out samples after direct factorisation and after training, and
what the loss did.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _results import Results, Row, markdown, name_of
from onnx import TensorProto, helper, numpy_helper

import trp_onnx
from trp_onnx import Goal, NetworkOptions, SearchSpace, Training, TrainingOptions

SQUEEZENET = trp_onnx.Preprocessing(mean=(104, 117, 123), color="bgr", crop=227)
MOBILENET = trp_onnx.Preprocessing(scale=1 / 127.5, mean=(1.0,), crop=224, label_offset=1)
PLAIN = trp_onnx.Preprocessing()

# network, MACs to keep, epochs, step size
RUNS = {
    "squeezenet1.1_imagenet": (SQUEEZENET, 0.65, 6, 0.002),
    "mobilenet_v2_1.0_224_imagenet_a": (MOBILENET, 0.8, 6, 0.002),
    "oww_embedding_model": (trp_onnx.Preprocessing(layout="nhwc"), 0.6, 10, 0.002),
    "conv1d": (PLAIN, 0.5, 10, 0.02),
    "matmul": (PLAIN, 0.4, 10, 0.02),
}


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--imagenet", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("names", nargs="*", metavar="NET")
    arguments = parser.parse_args()
    results = Results("training_generality", key=("net",))
    for name in arguments.names or RUNS:
        if not results.has(net=name):
            with tempfile.TemporaryDirectory() as folder:
                results.add(measure(name, arguments, Path(folder)))
            print(results.rows[-1], flush=True)
    print(table(results.rows))


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One network."""
    preprocessing, macs, epochs, rate = RUNS[name]
    model = arguments.models / f"{name}.onnx"
    data = arguments.imagenet
    if name in MADE:
        model = MADE[name](folder / f"{name}.onnx")
    if "imagenet" not in name:
        shape = [d.dim_value for d in onnx.load(model).graph.input[0].type.tensor_type.shape.dim[1:]]
        data = folder / "signals.npz"
        np.savez(data, x=_signals(1600, shape))
    batch = 16 if "imagenet" in name else 32
    options = TrainingOptions(
        epochs=epochs, batch=batch, micro_batch=batch // 2, rate=rate, warmup=20, every=10, labels=0.0,
        clip=5.0, augment=(), workers=arguments.workers,
    )  # fmt: skip
    start = time.perf_counter()
    report = trp_onnx.compress(
        model, folder / "out.onnx", Goal(macs=macs), data=data, search=SearchSpace(align=1),
        training=Training(options, run=folder / "run"), network=NetworkOptions(preprocessing=preprocessing),
    ).report  # fmt: skip
    curve = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    line: dict[str, Any] = {
        "net": name, "macs": round(report.macs.ratio, 3), "steps": curve[-1]["step"],
        "loss_first_epoch": curve[0]["loss"], "loss_last_epoch": curve[-1]["loss"],
        "distance_first_epoch": -curve[0]["score"], "distance_last_epoch": -curve[-1]["score"],
        "images_per_second": round(curve[-1]["step"] * batch / curve[-1]["seconds"], 1),
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    if "imagenet" in name:
        trp_onnx.compress(model, folder / "direct.onnx", Goal(macs=macs), search=SearchSpace(align=1))
        for which, path in (("dense", model), ("direct", folder / "direct.onnx"), ("trained", folder / "out.onnx")):
            line[f"top1_{which}"] = trp_onnx.evaluate(path, data, preprocessing=preprocessing).value / 100
    return line


def _signals(count: int, shape: list[int]) -> np.ndarray:
    """Smooth random signals: noise, summed up along the last axis but one."""
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    return np.asarray(x + np.roll(x, 1, axis=-1) + np.roll(x, 2, axis=-1), np.float32)


def _save(path: Path, nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], shape: list[int]) -> Path:
    graph = helper.make_graph(
        nodes, path.stem, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 12])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def conv1d(path: Path) -> Path:
    """A 1-d convolutional net of the kind that reads accelerometers."""
    rng = np.random.default_rng(0)
    widths, nodes, stored, x = (6, 32, 64, 64), [], {}, "x"
    for i, (c, n) in enumerate(itertools.pairwise(widths)):
        smooth = rng.standard_normal((n, 4)) @ rng.standard_normal((4, c * 9))  # trained weights have low rank too
        stored[f"w{i}"] = (smooth + 0.3 * rng.standard_normal((n, c * 9))).reshape(n, c, 9) / np.sqrt(4 * c * 9)
        nodes += [
            helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[4, 4], strides=[2]),
            helper.make_node("LeakyRelu", [f"c{i}"], [f"r{i}"]),
        ]
        x = f"r{i}"
    stored["wf"] = rng.standard_normal((64, 12)) / 8
    nodes += [
        helper.make_node("ReduceMean", [x], ["pooled"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["pooled", "wf"], ["y"], name="head"),
    ]
    return _save(path, nodes, stored, [6, 128])


def matmul(path: Path) -> Path:
    """A perceptron of MatMul, Add and LayerNormalization."""
    rng = np.random.default_rng(0)
    widths, nodes, stored, x = (40, 128, 128, 128), [], {}, "x"
    for i, (c, n) in enumerate(itertools.pairwise(widths)):
        smooth = rng.standard_normal((c, 12)) @ rng.standard_normal((12, n))
        stored |= {f"w{i}": (smooth + rng.standard_normal((c, n))) / np.sqrt(13 * c), f"b{i}": np.zeros(n) + 0.1 * i,
                   f"g{i}": np.ones(n), f"h{i}": np.zeros(n) - 0.1 * i}  # fmt: skip
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"], name=f"fc{i}"),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("LayerNormalization", [f"a{i}", f"g{i}", f"h{i}"], [f"n{i}"], axis=-1),
            helper.make_node("Tanh", [f"n{i}"], [f"t{i}"]),
        ]
        x = f"t{i}"
    stored["wf"] = rng.standard_normal((128, 12)) / 11
    return _save(path, [*nodes, helper.make_node("MatMul", [x, "wf"], ["y"], name="head")], stored, [40])


MADE = {"conv1d": conv1d, "matmul": matmul}


def table(measured: Sequence[Row]) -> str:
    """All lines."""
    lines = []
    for row in measured:
        top1 = (
            " / ".join(f"{row[f'top1_{k}']:.1%}" for k in ("dense", "direct", "trained")) if "top1_dense" in row else ""
        )
        lines.append((
            name_of(row["net"]), f"{row['macs']:.2f}", row["steps"], f"{row['distance_first_epoch']:#.3g}",
            f"{row['distance_last_epoch']:#.3g}", top1, f"{row['images_per_second']:.0f}",
        ))  # fmt: skip
    header = (
        "network", "MACs kept", "steps", "distance to the original, first epoch", "last epoch",
        "top-1 dense / factorised / trained, then factorised", "images/s",
    )  # fmt: skip
    return markdown(header, lines)


if __name__ == "__main__":
    main()
