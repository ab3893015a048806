"""An `.onnx` file as an `.ort` file, by ONNX Runtime's own converter.

    fixed      optimised once, here, for the CPU provider: the phone loads it as it is
    runtime    only what every provider understands is done here, the rest is noted down and done where it runs; what
               NNAPI, CoreML and XNNPACK want, for they do not know the operators that the CPU's fusions make

The blocked layout of x86 is left out unless the target is amd64: a file that has it loads nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path

from trp_onnx.errors import ModelError
from trp_onnx.graph.session import runtimes_reason
from trp_onnx.process.silence import quietly

TARGETS = ("any", "arm", "amd64")
STYLES = ("fixed", "runtime")

_SUFFIX = {"fixed": "", "runtime": ".with_runtime_opt"}


def convert_to_ort(model: Path, folder: Path, target: str = "any", style: str = "fixed") -> tuple[Path, Path]:
    """Convert a file.

    Args:
        model: The `.onnx`.
        folder: Where the result goes; it exists.
        target: "any", "arm" (int8 weights may stay signed) or "amd64" (blocked layout, loads on x86 only).
        style: "fixed" or "runtime", see the module.

    Returns:
        The `.ort`, and the operators and types that a reduced build must hold.

    Raises:
        ModelError: The converter refuses it.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    platform = None if target == "any" else target
    try:
        with quietly():
            convert_onnx_models_to_ort(
                model, folder, [OptimizationStyle[style.title()]], target_platform=platform, enable_type_reduction=True
            )
    except Exception as error:
        raise ModelError(f"onnxruntime cannot convert '{model}' to an .ort file: {runtimes_reason(error)}") from error
    made, config = (folder / name for name in names_of(model.stem, style))
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(f"{folder.resolve()}{os.sep}", ""), encoding="utf-8")  # it names where it was made
    return made, config


def names_of(stem: str, style: str) -> tuple[str, str]:
    """What `convert_to_ort` makes of STEM.onnx."""
    return f"{stem}{_SUFFIX[style]}.ort", f"{stem}.required_operators_and_types{_SUFFIX[style]}.config"


def is_plain(model: Path) -> bool:
    """Whether the converter takes a file as it is: it wants .onnx at the end of the name, and follows links."""
    return model.suffix.lower() == ".onnx" and not model.is_symlink()
