"""Where results go when nobody says, and how a file of ours is known."""

from __future__ import annotations

from pathlib import Path

MADE_BY = "trp_onnx"
"""Key of the metadata by which a file that compress wrote is known; its value is our version."""


def default_output(model: Path) -> Path:
    """Where the compressed model goes when nobody says: MODEL.lowrank.onnx beside MODEL."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.lowrank.onnx")


def is_ours(path: Path) -> bool:
    """Whether a file is a model that `compress` wrote, by its metadata."""
    import onnx

    if not path.is_file():
        return False
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # whatever it is, it is not ours
        return False
    return any(entry.key == MADE_BY for entry in model.metadata_props)
