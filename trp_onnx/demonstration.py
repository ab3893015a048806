"""The whole pipeline on a network that the project makes and trains itself.

Real images without a download: the 1,797 digits that ship with scikit-learn (8x8 pixels, from UCI). A
multi-layer perceptron is fitted by scikit-learn, written out as ONNX, compressed, and both files are
evaluated on a test part that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_onnx.compression import compress
from trp_onnx.data import Preprocessing
from trp_onnx.errors import OutputError, TrpOnnxError
from trp_onnx.report import Report

MACS = 0.25
HIDDEN = (256, 128)
SEED = 0


def demo(folder: str | PathLike[str]) -> Report:
    """Train, compress to 25 % of the MACs, verify and measure; the files stay in `folder`.

    Args:
        folder: Made if it does not exist. Gets `digits.onnx`, `digits-small.onnx`, `digits-test.npz`,
            `report.json`.

    Raises:
        TrpOnnxError: scikit-learn is not installed.
        OutputError: The folder cannot be written to.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise TrpOnnxError("the demo trains with scikit-learn: pip install 'trp-onnx[demo]'") from error

    folder = Path(folder)
    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.3, random_state=SEED, stratify=labels
    )
    network = MLPClassifier(HIDDEN, alpha=1e-3, max_iter=300, tol=1e-3, random_state=SEED)
    network.fit(x_train / 16, y_train)

    model = _as_onnx(network.coefs_, network.intercepts_)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ir.save(model, folder / "digits.onnx")
        np.savez(folder / "digits-test.npz", x=x_test.astype(np.uint8).reshape(-1, 8, 8, 1), y=y_test)
    except OSError as error:
        raise OutputError(f"cannot write the demo's files to '{folder}': {error.strerror}") from error
    return compress(
        folder / "digits.onnx",
        folder / "digits-small.onnx",
        macs=MACS,
        data=folder / "digits-test.npz",
        preprocessing=Preprocessing(scale=1 / 16),
        align=4,
        report_dir=folder,
    )


def _as_onnx(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> ir.Model:
    """Flatten -> (Gemm -> Relu)* -> Gemm; weights (in, out) as scikit-learn keeps them."""
    image = ir.val("image", ir.DataType.FLOAT, ["batch", 1, 8, 8])
    nodes = [ir.node("Flatten", [image], name="flatten")]
    initializers = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        pair = [_initializer(f"fc{index}.weight", weight), _initializer(f"fc{index}.bias", bias)]
        initializers += pair
        nodes.append(ir.node("Gemm", [nodes[-1].outputs[0], *pair], name=f"fc{index}"))
        if index < len(weights):
            nodes.append(ir.node("Relu", nodes[-1].outputs, name=f"relu{index}"))
    flow = nodes[-1].outputs[0]
    flow.name, flow.shape, flow.dtype = "logits", ir.Shape(["batch", 10]), ir.DataType.FLOAT
    graph = ir.Graph([image], [flow], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="digits")
    return ir.Model(graph, ir_version=8, producer_name="trp-onnx demo")


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array.astype(np.float32), name=name)
    return ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
