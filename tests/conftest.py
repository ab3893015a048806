import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores test at once; before NumPy is there

from trp_onnx.training import isolated_runtime

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; the commands that tests start heed it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parent.parent


def shared_data() -> Path | None:
    """The measuring data beside the checkout, or wherever TRP_ONNX_DATA points; None where absent."""
    candidates = [os.environ.get("TRP_ONNX_DATA"), REPO.parent / "shared" / "data"]
    return next((Path(c) for c in candidates if c and Path(c).is_dir()), None)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements of tests stay out of the user's cache, those of the commands that they start as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRP_ONNX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def short_samples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are taken as ever, but in short samples and at once, where no test asks how long something takes."""
    if request.node.get_closest_marker("timing") is None:
        monkeypatch.setattr("trp_onnx.latency.timing.SAMPLE_SECONDS", 1e-4)
        monkeypatch.setattr("trp_onnx.latency.pace.APART", 1e-9)


@pytest.fixture(scope="session")
def real_models() -> Path:
    folder = shared_data()
    if folder is None:
        pytest.skip("shared/data is absent: set TRP_ONNX_DATA to the folder with the real models")
    return folder / "models"


@pytest.fixture(scope="session")
def training_runtime() -> None:
    """The runtime that trains, set up where it is missing."""
    if sys.version_info[:2] not in isolated_runtime.PYTHONS:
        pytest.skip("onnxruntime-training has no wheel for this Python")
    isolated_runtime.ensure_runtime()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the training runtime is missing, the tests that want it download it."""
    if isolated_runtime.installed_runtime() is None:
        for item in items:
            if "training_runtime" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.network)
