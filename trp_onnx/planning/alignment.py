"""Rank alignment: the width of the block in which the target's kernels compute channels.

Within a block every rank costs the same, one rank more costs a whole block; so ranks are rounded up to
the block. ONNX Runtime's CPU kernels (NCHWc) use 16 channels with AVX-512 and 8 with AVX2; the im2col
kernels of ARM and of `.ort` files have no steps, and 4 keeps them in full SIMD registers.
"""

from __future__ import annotations


def resolve_alignment(align: int | str) -> int:
    """A number of channels from a number or "auto", which asks the CPU at hand."""
    return simd_block() if align == "auto" else int(align)


def simd_block() -> int:
    """Channels in one block of ONNX Runtime's convolution kernels on this CPU: 16, 8 or 4."""
    import numpy as np

    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    found = {*simd.get("baseline", ()), *simd.get("found", ())}
    # NumPy names feature groups after the x86-64 levels since 2.4, and after the instruction sets before.
    if found & {"X86_V4", "AVX512F", "AVX512_SKX"}:
        return 16
    return 8 if found & {"X86_V3", "AVX2"} else 4
