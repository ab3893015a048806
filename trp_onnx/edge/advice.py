"""What each provider asks of a layer's kernel, size and rank, layer by layer.

Only what was measured (docs/planning.md) or what the runtime's documentation says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trp_onnx.graph.layers import FACTORISABLE, Layer
from trp_onnx.graph.provenance import origin_of

_BLOCK, _WHOLE = 16, 4


@dataclass(frozen=True)
class Advice:
    """One sentence on one layer.

    Attributes:
        layer: Its name; a factor's is that of its layer.
        provider: Whom it concerns.
        text: What to know or to do.
    """

    layer: str
    provider: str
    text: str


def advise(layers: Sequence[Layer]) -> list[Advice]:
    """What is worth knowing of the layers of a model."""
    found: list[Advice] = []
    for layer in layers:
        if layer.op not in FACTORISABLE:
            continue
        geometry, origin = layer.geometry, origin_of(layer.node)
        name = origin or layer.name
        if geometry is None or layer.constant is None:
            found.append(
                Advice(name, "xnnpack, nnapi, coreml, qnn", "its weight is computed in the graph: they want constants")
            )
            continue
        thin = len(geometry.kernel) == 2 and min(geometry.kernel) < 3 <= max(geometry.kernel)
        if thin and origin is not None:
            found.append(
                Advice(
                    name, "cpu on newest ARM cores (SME)",
                    "kx1 and 1xk factors leave KleidiAI's convolution, which wants both kernel sizes from 3; scheme "
                    "channel or tucker2 stays in it",
                )
            )  # fmt: skip
        rank = geometry.groups * geometry.out_channels
        if _feeds_a_factor(layer) and geometry.kernel and rank >= _BLOCK and rank % _WHOLE:
            found.append(
                Advice(
                    name, "cpu on x86 (.onnx, blocked layout)",
                    f"rank {rank} is no multiple of {_WHOLE}: the next factor leaves that layout; --align 8 or 16",
                )
            )  # fmt: skip
        if len(geometry.kernel) not in (0, 2):
            found.append(Advice(name, "xnnpack", f"a {len(geometry.kernel)}-d convolution stays on the CPU provider"))
    return list(dict.fromkeys(found))


def _feeds_a_factor(layer: Layer) -> bool:
    """Whether another factor of the same layer comes behind it."""
    origin = origin_of(layer.node)
    return origin is not None and any(origin_of(node) == origin for node in layer.node.outputs[0].consumers())
