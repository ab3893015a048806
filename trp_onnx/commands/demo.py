"""The whole pipeline on a network that the project makes and trains itself.

Real images without a download: the 1,797 digits that ship with scikit-learn (8x8 pixels, from UCI). A
multi-layer perceptron is fitted by scikit-learn and written out as ONNX. Then it is compressed twice to the
same size, once directly and once after training with projection, and all files are evaluated on a test part
that nothing was chosen on.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.commands.compress import compress
from trp_onnx.data import Preprocessing
from trp_onnx.errors import ModelError, OutputError, TrpOnnxError, UsageError
from trp_onnx.files.paths import REPORT_FILES, guard
from trp_onnx.files.staging import written_whole
from trp_onnx.graph.model import open_model
from trp_onnx.job import Goal, NetworkOptions, SearchSpace, Training
from trp_onnx.report import Report
from trp_onnx.training import TrainingOptions
from trp_onnx.training.run_folder import RunFolder

MACS = 0.12
EPOCHS = 40
HIDDEN = (256, 128)
SEED = 0
PRODUCER = "trp-onnx demo"

FILES = ("digits.onnx", "digits-train.npz", "digits-test.npz", "digits-direct.onnx", "digits-small.onnx", *REPORT_FILES)


def demo(folder: str | PathLike[str]) -> tuple[Report, Report]:
    """Fit, compress to 12 % of the MACs, verify and measure; the files stay in `folder`.

    Args:
        folder: Made if it does not exist. Gets `digits.onnx`, `digits-direct.onnx`, `digits-small.onnx`,
            `digits-train.npz`, `digits-test.npz`, `report.json`.

    Returns:
        The direct compression, and the one after training.

    Raises:
        TrainingError: The training runtime cannot be set up.
        TrpOnnxError: scikit-learn is not installed.
        UsageError: The folder holds something, and was not made by the demo.
        OutputError: The folder cannot be written to.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise TrpOnnxError("the demo trains with scikit-learn: pip install 'trp-onnx[demo]'") from error

    folder = Path(folder)
    _check_folder(folder)
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.3, random_state=SEED, stratify=labels
    )
    network = MLPClassifier(HIDDEN, alpha=1e-3, max_iter=300, tol=1e-3, random_state=SEED)
    with _heard():
        network.fit(x_train / 16, y_train)

    with written_whole(folder / "digits.onnx") as file:
        file.write(ir.to_proto(_as_onnx(network.coefs_, network.intercepts_)).SerializeToString())
    for name, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        with written_whole(folder / f"digits-{name}.npz") as file:
            np.savez(file, x=x.astype(np.uint8).reshape(-1, 8, 8, 1), y=y)
    # A training that ended before its time begins anew: it takes seconds.
    training = RunFolder(folder / "digits-small.onnx.trp-run")
    training.remove()
    try:
        return _compressed(folder)
    except KeyboardInterrupt as error:
        training.remove()
        error.__notes__ = [f"what was finished before is in '{folder}'"]
        raise


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier demo, which its network is known by; make it otherwise."""
    guard(folders=[(folder, FILES)])
    ours = folder / "digits.onnx"
    with contextlib.suppress(ModelError):
        if ours.exists() and open_model(ours).producer_name == PRODUCER:
            return
    for entry in folder.iterdir() if folder.is_dir() else ():
        raise UsageError(f"the folder '{folder}' holds '{entry.name}' and no demo: give -o another, or an empty one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{folder}': {error.strerror}") from error


@contextmanager
def _heard() -> Iterator[None]:
    """scikit-learn ends a fit at Ctrl-C, warns, and goes on with what it has; we do not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Training interrupted")
        try:
            yield
        except UserWarning as warning:
            raise KeyboardInterrupt from warning


def _compressed(folder: Path) -> tuple[Report, Report]:
    """Directly, and after training."""
    options = TrainingOptions(epochs=EPOCHS, batch=64, warmup=20, augment=(), every=5)
    reports = []
    for name, training in (("direct", None), ("small", Training(options))):
        result = compress(
            folder / "digits.onnx",
            folder / f"digits-{name}.onnx",
            Goal(macs=MACS),
            data=folder / "digits-train.npz",
            test=folder / "digits-test.npz",
            search=SearchSpace(align=1),
            training=training,
            network=NetworkOptions(preprocessing=Preprocessing(scale=1 / 16)),
        )
        result.report.save(folder)
        reports.append(result.report)
    return reports[0], reports[1]


def _as_onnx(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> ir.Model:
    """Flatten -> (Gemm -> Relu)* -> Gemm; weights (in, out) as scikit-learn keeps them."""
    image, tape = ir.val("image", ir.DataType.FLOAT, ["batch", 1, 8, 8]), ir.tape.Tape()
    flow = tape.op("Flatten", [image], name="flatten")
    for index, pair in enumerate(zip(weights, biases, strict=True), 1):
        names = (f"fc{index}.weight", f"fc{index}.bias")
        stored = [ir.tensor(array.astype(np.float32), name=name) for name, array in zip(names, pair, strict=True)]
        flow = tape.op("Gemm", [flow, *map(tape.initializer, stored)], name=f"fc{index}")
        if index < len(weights):
            flow = tape.op("Relu", [flow], name=f"relu{index}")
    flow.name, flow.shape, flow.dtype = "logits", ir.Shape(["batch", 10]), ir.DataType.FLOAT
    graph = ir.Graph(
        [image], [flow], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 17}, name="digits"
    )
    return ir.Model(graph, ir_version=8, producer_name=PRODUCER)
