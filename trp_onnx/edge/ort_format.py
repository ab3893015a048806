"""An `.onnx` file as an `.ort` file, by ONNX Runtime's own converter, in its Fixed style.

The graph is optimised once, here, so that the phone loads it as it is. The blocked layout of x86 is left out unless the
target is amd64: a file that has it loads nowhere else.
"""

from __future__ import annotations

from pathlib import Path

from trp_onnx.edge.quiet import quietly
from trp_onnx.errors import ModelError

TARGETS = ("any", "arm", "amd64")


def convert_to_ort(model: Path, folder: Path, target: str = "any") -> tuple[Path, Path]:
    """Convert a file.

    Args:
        model: The `.onnx`.
        folder: Where the result goes; it exists.
        target: "any", "arm" (int8 weights may stay signed) or "amd64" (blocked layout, loads on x86 only).

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
                model, folder, [OptimizationStyle.Fixed], target_platform=platform, enable_type_reduction=True
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"onnxruntime cannot convert '{model}' to an .ort file: {reason}") from error
    config = folder / f"{model.stem}.required_operators_and_types.config"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(f"{folder.resolve()}/", ""), encoding="utf-8")  # it names where it was made
    return folder / f"{model.stem}.ort", config
