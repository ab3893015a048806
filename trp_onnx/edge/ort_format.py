"""An `.onnx` file as an `.ort` file, by ONNX Runtime's own converter.

    fixed      optimised once, here, for the CPU provider: the phone loads it as it is
    runtime    only what every provider understands is done here, the rest is noted down and done where it runs; what
               NNAPI, CoreML and XNNPACK want, for they do not know the operators that the CPU's fusions make

The blocked layout of x86 is left out unless the target is amd64: a file that has it loads nowhere else.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from trp_onnx.edge.quiet import quietly
from trp_onnx.errors import ModelError

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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"onnxruntime cannot convert '{model}' to an .ort file: {reason}") from error
    name = model.resolve().stem  # the converter follows links
    made = folder / f"{name}{_SUFFIX[style]}.ort"
    config = folder / f"{name}.required_operators_and_types{_SUFFIX[style]}.config"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(f"{folder.resolve()}/", ""), encoding="utf-8")  # it names where it was made
    return made, config


def plain_file(model: Path, folder: Path) -> Path:
    """The model under a name that the converter takes: no link, and ending in .onnx; copied where that needs it."""
    if model.suffix.lower() == ".onnx" and model.resolve().name == model.name:
        return model
    return Path(shutil.copy(model, folder / f"{model.stem}.onnx"))
