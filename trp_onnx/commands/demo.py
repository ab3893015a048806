"""The whole pipeline on a convolutional network that the demo makes and trains itself.

Real images without a download: the 1,797 digits that come with scikit-learn (8x8 pixels, from UCI), scaled up to
16x16. The network begins with random filters and a last layer that scikit-learn fits to them. Then the training engine
trains all of its layers. Where there is no training runtime, the random filters stay.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from shlex import quote

import numpy as np
import onnx_ir as ir

from trp_onnx.commands.compress import compress
from trp_onnx.commands.result import Compressed
from trp_onnx.data import Preprocessing
from trp_onnx.edge import Export, export
from trp_onnx.errors import ModelError, OutputError, TargetError, TrainingError, TrpOnnxError, UsageError
from trp_onnx.files.paths import REPORT_FILES, guard
from trp_onnx.files.staging import write_text, written_whole
from trp_onnx.graph.inputs import inputs_of
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import run_model
from trp_onnx.job import Goal, NetworkOptions, SearchSpace
from trp_onnx.progress import at_work, note, say
from trp_onnx.report import check_page
from trp_onnx.training import TrainingOptions
from trp_onnx.training.isolated_runtime import ensure_runtime
from trp_onnx.training.run_folder import RunFolder

SPEEDUP, UNTRAINED = 1.7, 1.55
"""What is asked for; less of filters that stayed random, which lose more by it."""

MACS = 0.45
"""Where the machine is too busy, or too unlike ours, to measure a speed-up."""

SIZE = 16
CHANNELS, STRIDES = (32, 64, 64, 128, 128), (1, 2, 1, 2, 1)
EPOCHS = 6
SEED = 0
PRODUCER = "trp-onnx demo"
PREPROCESSING = Preprocessing(scale=1 / 255)

NETWORK, SMALL, TRAIN, TEST, INPUT, APP = (
    "digits.onnx", "digits-small.onnx", "digits-train.npz", "digits-test.npz", "input.toml", "app"
)  # fmt: skip
FILES = (NETWORK, SMALL, TRAIN, TEST, INPUT, *REPORT_FILES)


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        folder: Where its files are.
        trained: Whether the network was trained; without a training runtime its filters are random.
        result: The compressed network, its plan and report.
        exported: The `.ort` file and what belongs to it.
    """

    folder: Path
    trained: bool
    result: Compressed
    exported: Export

    @property
    def page(self) -> Path:
        """The report page."""
        return self.folder / "report.html"

    @property
    def ort(self) -> Path:
        """The `.ort` file."""
        return Path(self.exported.folder) / Path(SMALL).with_suffix(".ort").name

    def next_commands(self) -> tuple[str, ...]:
        """What a user may try now, on the demo's files."""
        network, data, preprocess = (quote(str(self.folder / name)) for name in (NETWORK, TRAIN, INPUT))
        small, out = (quote(str(self.folder / name)) for name in (SMALL, "digits-int8.onnx"))
        return (
            f"trp-onnx inspect {network}",
            f"trp-onnx bench {network} {small}",
            f"trp-onnx quantize {small} -o {out} --data {data} --preprocess {preprocess}",
        )


def demo(folder: str | PathLike[str]) -> Demo:
    """Train a network, make it 1.7 times as fast, verify, measure and export it; the files stay in `folder`.

    Args:
        folder: Made if it does not exist. Gets `digits.onnx`, `digits-small.onnx`, `digits-train.npz`,
            `digits-test.npz`, `input.toml`, `app/` with the `.ort` file, `report.html`, `report.json`, `plan.toml`.

    Raises:
        TrpOnnxError: scikit-learn is not installed.
        TrainingError: Training failed.
        UsageError: The folder holds something, and was not made by the demo.
        OutputError: The folder cannot be written to.
    """
    if find_spec("sklearn") is None:
        raise TrpOnnxError("the demo takes its data from scikit-learn: pip install 'trp-onnx[demo]'")
    check_page()
    folder = Path(folder)
    _check_folder(folder)
    with at_work() as notes:
        trained = _can_train()
        network = _first_network(folder)
        try:
            if trained:
                _train(network, folder)
            result = _made_small(folder, SPEEDUP if trained else UNTRAINED)
            exported = export(folder / SMALL, folder / APP, input_shapes={"image": (1, 1, SIZE, SIZE)})
        except KeyboardInterrupt as error:
            error.__notes__ = [f"what was finished before is in '{folder}'"]
            raise
    report = replace(result.report, notes=(*notes, *result.report.notes))
    report.save(folder, f"trp-onnx demo -o {folder}")
    return Demo(folder, trained, replace(result, report=report), exported)


def _can_train() -> bool:
    """Whether there is a training runtime, or one can be set up; what is left out otherwise is said at once."""
    try:
        ensure_runtime()
    except TrainingError as error:
        note(f"the demo leaves training out, its filters stay random: {error}")
        return False
    return True


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier demo, which its network is known by; make it otherwise."""
    guard(folders=[(folder, FILES)])
    ours = folder / NETWORK
    with contextlib.suppress(ModelError):
        if ours.exists() and open_model(ours).producer_name == PRODUCER:
            return
    for entry in folder.iterdir() if folder.is_dir() else ():
        raise UsageError(f"the folder '{folder}' holds '{entry.name}' and no demo: give -o another, or an empty one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{folder}': {error.strerror}") from error


def _enlarged(images: np.ndarray) -> np.ndarray:
    """(n, 64) of 0 to 16 -> (n, 16, 16, 1) of 0 to 255, by linear interpolation."""
    from scipy.ndimage import zoom

    small = images.reshape(-1, 8, 8) * (255 / 16)
    large: np.ndarray = np.round(zoom(small, (1, SIZE / 8, SIZE / 8), order=1))
    return large.astype(np.uint8)[..., np.newaxis]


def _first_network(folder: Path) -> ir.Model:
    """Write the data, and the network that training begins with."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        _enlarged(images), labels, test_size=0.3, random_state=SEED, stratify=labels
    )
    say(f"a network of {len(CHANNELS)} convolutions, fitted to {len(x_train)} digits, tested on {len(x_test)} others")
    network = _fitted(x_train, y_train)
    for name, x, y in ((TRAIN, x_train, y_train), (TEST, x_test, y_test)):
        with written_whole(folder / name) as file:
            np.savez(file, x=x, y=y)
    write_text(folder / INPUT, 'scale = "1/255"\n')
    _save(network, folder / NETWORK)
    return network


def _fitted(x: np.ndarray, y: np.ndarray) -> ir.Model:
    """Random filters, and a last layer that is fitted to what they give: a logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rng, weights, channels = np.random.default_rng(SEED), [], 1
    for width in CHANNELS:
        scale = np.sqrt(2 / (9 * channels))  # He et al. 2015: keeps the spread of activations
        weights.append(scale * rng.standard_normal((width, channels, 3, 3)))
        channels = width
    bare = _as_onnx([*weights, np.eye(channels)])
    features = run_model(ir.to_proto(bare), {"image": PREPROCESSING(x)})["logits"]
    spread = features.std(axis=0) + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough for a demo
        head = LogisticRegression(C=10.0, max_iter=200, tol=1e-2).fit(features / spread, y)
    return _as_onnx([*weights, head.coef_ / spread], head.intercept_)


def _train(network: ir.Model, folder: Path) -> None:
    """Train all layers, and write the network anew. No layer is projected: this is the network before compression."""
    from trp_onnx.training.run import TrainingRun

    # A training that ended before its time begins anew: it takes seconds.
    place = folder / f"{NETWORK}.trp-run"
    RunFolder(place).remove()
    options = TrainingOptions(
        epochs=EPOCHS, batch=32, micro_batch=32, warmup=40, clip=1.0, augment=(), labels=1.0, distill=0.0
    )
    try:
        with TrainingRun(
            place, folder / TRAIN, PREPROCESSING, options, folder / NETWORK, resume=False, keep=False,
            inputs=inputs_of(network),
        ) as run:  # fmt: skip
            run.train(network, find_layers(network), {}, {}, Goal(), align=1)
            run.remove()
    finally:
        RunFolder(place).remove()
    _save(network, folder / NETWORK)


def _made_small(folder: Path, speedup: float) -> Compressed:
    """Compressed by measured time."""
    try:
        return _compressed(folder, Goal(speedup=speedup))
    except TargetError as error:
        note(f"{error}; the demo keeps {MACS:.0%} of the MACs instead")
        return _compressed(folder, Goal(macs=MACS))


def _compressed(folder: Path, goal: Goal) -> Compressed:
    return compress(
        folder / NETWORK,
        folder / SMALL,
        goal,
        data=folder / TRAIN,
        test=folder / TEST,
        search=SearchSpace(scheme="spatial"),
        network=NetworkOptions(preprocessing=PREPROCESSING),
    )


def _save(network: ir.Model, path: Path) -> None:
    with written_whole(path) as file:
        file.write(ir.to_proto(network).SerializeToString())


def _as_onnx(weights: list[np.ndarray], bias: np.ndarray | None = None) -> ir.Model:
    """(Conv 3x3 -> Relu)* -> mean over the image -> Gemm; weights (N, C, 3, 3), and the last (10, C)."""
    image, tape = ir.val("image", ir.DataType.FLOAT, ["batch", 1, SIZE, SIZE]), ir.tape.Tape()

    def stored(array: np.ndarray, name: str) -> ir.Value:
        return tape.initializer(ir.tensor(array.astype(np.float32), name=name))

    flow = image
    for index, (weight, stride) in enumerate(zip(weights[:-1], STRIDES, strict=True), 1):
        parts = stored(weight, f"conv{index}.weight"), stored(np.zeros(len(weight)), f"conv{index}.bias")
        geometry = {"kernel_shape": [3, 3], "strides": [stride, stride], "pads": [1, 1, 1, 1]}
        flow = tape.op("Conv", [flow, *parts], attributes=geometry, name=f"conv{index}")
        flow = tape.op("Relu", [flow], name=f"relu{index}")
    flow = tape.op("Flatten", [tape.op("GlobalAveragePool", [flow], name="pool")], name="flatten")
    last = weights[-1]
    head = stored(last, "fc.weight"), stored(np.zeros(len(last)) if bias is None else bias, "fc.bias")
    flow = tape.op("Gemm", [flow, *head], attributes={"transB": 1}, name="fc")
    flow.name, flow.shape, flow.dtype = "logits", ir.Shape(["batch", len(last)]), ir.DataType.FLOAT
    graph = ir.Graph(
        [image], [flow], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 17}, name="digits"
    )
    return ir.Model(graph, ir_version=8, producer_name=PRODUCER)
