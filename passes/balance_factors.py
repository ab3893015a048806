"""Even out what flows between two layers with nothing in between, without changing what they compute.

Two factors leave the size of each channel between them open: channel r of the first may grow by s_r where the second
shrinks by it. An int8 tensor has one scale, so channels of very different size lose their bits; factors from an SVD
fall off with the singular values. With a_r the largest activation of channel r and u_r the second's largest weight
for it,

    s_r = sqrt(u_r / a_r)

makes both equal sqrt(a_r u_r) (cross-layer equalisation, Nagel et al. 2019, arXiv 1906.04721, with activations in place
of the first weight's range, which has a scale for every channel already).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trp_onnx.graph.bias import bias_of, corrects_bias
from trp_onnx.graph.layers import Layer, layers_named
from trp_onnx.lowrank.linalg import Array
from trp_onnx.passes.replace_weights import ReplaceWeightsPass


class BalanceFactorsPass(ir.passes.InPlacePass):
    """Scale the channels between `pairs_of` layers."""

    def __init__(self, largest: Mapping[str, Array]) -> None:
        """Configure the pass.

        Args:
            largest: Largest absolute activation of each channel, (C,), by the name of the value between two layers;
                pairs without an entry stay as they are.
        """
        super().__init__()
        self.largest = largest

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run; a layer in the middle of three is scaled on both sides."""
        layers: dict[str, Layer] = {}
        weights: dict[str, Array] = {}
        grown: dict[str, Array] = {}
        for first, second in pairs_of(list(layers_named(model).values())):
            if between(first) not in self.largest:
                continue
            for layer in (first, second):
                layers[layer.name] = layer
                weights.setdefault(layer.name, layer.weight())
            a = np.maximum(self.largest[between(first)], 1e-12)
            u = np.maximum(np.abs(_channels(weights[second.name], 2)).max(axis=1), 1e-12)
            scale = np.sqrt(u / a)
            scale /= np.exp(np.log(scale).mean())
            weights[first.name] = weights[first.name] * _along(scale, weights[first.name], 1)
            weights[second.name] = weights[second.name] / _along(scale, weights[second.name], 2)
            grown[first.name] = scale
        changes: dict[str, tuple[Array, Array | None]] = {}
        for name, weight in weights.items():
            bias = bias_of(layers[name]) if name in grown else None
            shift = None if bias is None else bias.array().astype(np.float64).reshape(-1) * (grown[name] - 1)
            changes[name] = (weight, shift)
        return ReplaceWeightsPass(changes)(model)


def pairs_of(layers: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Layers whose output goes into one other layer and nowhere else."""
    by_node = {layer.node: layer for layer in layers if layer.reason is None}
    owners: dict[object, int] = {}
    for layer in by_node.values():
        owners[layer.key] = owners.get(layer.key, 0) + 1
    found = []
    for first in by_node.values():
        value = first.node.outputs[0]
        users = list(value.consumers())
        second = by_node.get(users[0]) if len(users) == 1 and not value.is_graph_output() else None
        if second is None or not (_plain(first) and _plain(second)) or owners[first.key] + owners[second.key] > 2:
            continue
        if second.layout is None or second.node.inputs[1 - second.layout.weight_index] is not value:
            continue
        if bias_of(first) is None and len(first.node.inputs) > 2 and first.node.inputs[2] is not None:
            continue  # a bias that is computed
        found.append((first, second))
    return found


def between(layer: Layer) -> str:
    """Name of the value that a layer gives."""
    return layer.node.outputs[0].name or ""


def _plain(layer: Layer) -> bool:
    geometry, layout = layer.geometry, layer.layout
    if geometry is None or layout is None or geometry.groups != 1 or layout.on_left or layout.batch:
        return False
    return layer.op == "Conv" or (layer.op in ("Gemm", "MatMul") and (bias_of(layer) is None or corrects_bias(layer)))


def _channels(weight: Array, axis: int) -> Array:
    """(C, everything else)."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _along(scale: Array, weight: Array, axis: int) -> Array:
    shape = [1] * weight.ndim
    shape[axis] = len(scale)
    return scale.reshape(shape)
