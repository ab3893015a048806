"""What this machine has, and what is possible here."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

from trp_onnx._version import __version__
from trp_onnx.errors import TrainingError
from trp_onnx.planning.alignment import simd_block
from trp_onnx.schema import Document

_PACKAGES = ("onnx", "onnx-ir", "onnxruntime", "onnxsim", "numpy", "scipy", "click", "rich", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Diagnosis(Document):
    """Versions, providers, and everything that stands in the way.

    Attributes:
        python: Interpreter version.
        machine: Operating system and processor architecture.
        versions: Version of each package; None where it is not installed.
        providers: Execution providers of the installed ONNX Runtime.
        runtimes: Installed distributions that all provide the import `onnxruntime`.
        simd_block: Channels in one block of the CPU provider's convolutions; `--align auto`.
        training: What there is to train with.
        problems: What is wrong, one sentence each.
    """

    python: str
    machine: str
    versions: dict[str, str | None]
    providers: tuple[str, ...]
    runtimes: tuple[str, ...]
    simd_block: int
    training: str
    problems: tuple[str, ...]


def doctor() -> Diagnosis:
    """Look around; nothing is changed."""
    problems = []
    runtimes = tuple(sorted({d.name for d in metadata.distributions() if _is_runtime(d)}))
    if len(runtimes) > 1:
        problems.append(
            f"{' and '.join(runtimes)} are installed together and overwrite each other: "
            "uninstall them all, then install one"
        )
    providers: tuple[str, ...] = ()
    try:
        import onnxruntime

        providers = tuple(onnxruntime.get_available_providers())
    except Exception as error:  # a broken install fails in many ways
        problems.append(f"onnxruntime cannot be imported: {error}")
    versions = {"trp-onnx": __version__} | {name: _version(name) for name in _PACKAGES}
    if versions["scikit-learn"] is None:
        problems.append("scikit-learn is not installed: trp-onnx demo needs it (pip install 'trp-onnx[demo]')")
    return Diagnosis(
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        versions,
        providers,
        runtimes,
        simd_block(),
        _training(),
        tuple(problems),
    )


def _training() -> str:
    from trp_onnx.training.isolated_runtime import VERSION, check_python, installed_runtime

    try:
        check_python()
    except TrainingError as error:
        return str(error)
    folder = installed_runtime()
    if folder is None:
        return "the runtime is not set up yet: trp-onnx setup-training, or the first --train, does it"
    workers = "" if _version("mpi4py") else "; several workers need trp-onnx[mpi]"
    return f"onnxruntime-training {VERSION} in {folder}{workers}"


def _is_runtime(distribution: metadata.Distribution) -> bool:
    name = (distribution.name or "").lower().replace("_", "-")
    return name == "onnxruntime" or (name.startswith("onnxruntime-") and _provides_runtime(distribution))


def _provides_runtime(distribution: metadata.Distribution) -> bool:
    return any(str(file).replace("\\", "/") == "onnxruntime/__init__.py" for file in distribution.files or ())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
