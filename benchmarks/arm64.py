"""The same numbers on ARM64: `.ort` files, float and int8, run by qemu and held against this machine's.

    python benchmarks/arm64.py --models DIR --python ROOT/python [FILE ...]

ROOT is made by `arm64_root.sh`. FILEs are further models. Calibration is by noise: the numbers count, not the answers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _results import Results, markdown
from without_training import NETS

import trp_onnx
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import feeds_for, relative_error
from trp_onnx.runners import open_runner


def main() -> None:
    """Measure the rows that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    results = Results("arm64", key=("file",))
    for file in [*(arguments.models / net.file for net in NETS.values()), *arguments.files]:
        if not results.has(file=f"{file.stem}, int8"):
            with tempfile.TemporaryDirectory() as folder:
                for name, error in errors(file, Path(folder), arguments.python).items():
                    results.add({"file": name, "error": float(f"{error:.2g}")})
                    print(results.rows[-1], flush=True)
    print(markdown(("file", "error"), [[row["file"], row["error"]] for row in results.rows]))


def errors(file: Path, folder: Path, python: str) -> dict[str, float]:
    """Relative error of the ARM64 outputs, in float and in int8."""
    feeds = feeds_for(open_model(file))
    (x,) = feeds.values()
    noise = np.random.default_rng(0).standard_normal((64, *x.shape[1:])).astype(np.float32)
    np.savez(folder / "noise.npz", x=noise.transpose(0, 2, 3, 1))
    trp_onnx.quantize(
        file, folder / "int8.onnx", folder / "noise.npz", device=trp_onnx.Device(target="arm"), max_drop=99
    )
    found = {}
    with open_runner() as here, open_runner(f"python:{python}", timeout=600) as arm:
        assert "aarch64" in arm.describe().machine
        for name, source in ((file.stem, file), (f"{file.stem}, int8", folder / "int8.onnx")):
            trp_onnx.export(source, folder / "out", target="arm")
            ort = folder / "out" / f"{source.stem}.ort"
            here.prepare([ort], feeds)
            arm.prepare([ort], feeds)
            expected, actual = here.outputs()[0], arm.outputs()[0]
            found[name] = max(relative_error(array, actual[key]) for key, array in expected.items())
    return found


if __name__ == "__main__":
    main()
