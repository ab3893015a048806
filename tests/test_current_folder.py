"""No command runs code from the current folder, but for the function that `--data` names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import graphs

OPTIONAL = (
    "gmpy2", "sitecustomize", "usercustomize", "mpi4py", "yaml", "onnx", "onnxruntime", "onnxsim", "onnxscript", "PIL",
    "numpy", "scipy", "sympy", "mpmath", "matplotlib", "jinja2", "sklearn", "joblib", "pandas", "torch", "tqdm", "pip",
    "google", "ml_dtypes", "rich", "click", "platformdirs", "psutil", "flatbuffers", "cupy", "numba", "dask",
    "defusedxml", "trp_onnx", "coloredlogs", "humanfriendly", "attr", "IPython", "ipywidgets", "colorama",
    "typing_extensions",
)  # fmt: skip
INSTALLED = ["-P", "-c", "import sys; from trp_onnx.cli.main import main; main(prog_name='trp-onnx')"]
"""As the script does that pip installs: the current folder is on no path."""


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A folder in which every module that anything might import writes a file."""
    folder = tmp_path / "poisoned"
    folder.mkdir()
    for name in {*OPTIONAL, *sys.stdlib_module_names}:
        bad = folder / f"{name}.py"
        bad.write_text(f"import io\nio.FileIO({str(tmp_path / 'executed')!r}, 'a').write(b'{name} ')\n")
    return folder


def command(folder: Path, *arguments: object, how: list[str] = INSTALLED) -> subprocess.CompletedProcess[str]:
    """A command in a folder, with the package of this checkout."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, *how, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    executed = folder.parent / "executed"
    assert not executed.exists(), f"executed: {executed.read_text()}"
    assert "Traceback" not in done.stderr
    return done


COMMANDS = {
    "compress": ("compress", "../net.onnx", "-o", "../out.onnx", "--macs", "0.6", "--align", "1", "--report", "../r"),
    "inspect": ("inspect", "../net.onnx", "--json", "-"),
    "evaluate": ("evaluate", "../net.onnx", "--data", "../data.npz"),
    "bench": ("bench", "../net.onnx", "../net.onnx", "--rounds", "2", "--inputs", "../x.npz"),
    "profile": ("profile", "../net.onnx", "-o", "../table.json", "--scheme", "svd"),
    "quantize": ("quantize", "../net.onnx", "-o", "../int8.onnx", "--data", "../data.npz"),
    "export": ("export", "../net.onnx", "-o", "../app"),
    "another Python": ("bench", "../net.onnx", "--rounds", "2", "--runtime", f"python:{sys.executable}"),
    "doctor": ("doctor",),
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    graphs.conv_net(tmp_path / "net.onnx", channels=12)
    x = graphs.rng().standard_normal((64, 12, 12, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % 10)
    np.savez(tmp_path / "x.npz", x=x[:1].transpose(0, 3, 1, 2).copy())


def test_nothing_in_the_current_folder_is_executed(poisoned: Path, files: None) -> None:
    """By any command; one process runs them all, for most of their time they import."""
    code = f"from trp_onnx.cli.main import main\nfor c in {list(COMMANDS.values())!r}: main(c, standalone_mode=False)"
    done = command(poisoned, how=["-P", "-c", code])
    assert done.returncode == 0, done.stderr


def test_nor_by_python_m(tmp_path: Path, files: None) -> None:
    """Python itself searches that folder for what it needs to start; none of our imports does."""
    (tmp_path / "poisoned").mkdir()
    for name in set(OPTIONAL) - {"trp_onnx"}:
        (tmp_path / "poisoned" / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').write('{name}')")
    assert command(tmp_path / "poisoned", "inspect", "../net.onnx", how=["-m", "trp_onnx"]).returncode == 0


TRAIN = ("compress", "../net.onnx", "-o", "../out.onnx", "--macs", "0.6", "--align", "1", "--train", "--epochs", "1",
         "--batch", "16", "--augment", "none", "--data")  # fmt: skip


def test_nor_by_the_training_workers(poisoned: Path, files: None, training_runtime: None) -> None:
    done = command(poisoned, *TRAIN, "../data.npz")
    assert done.returncode == 0, done.stderr


def test_a_data_function_in_the_current_folder_is_found(tmp_path: Path, files: None, training_runtime: None) -> None:
    mine = tmp_path / "mine"
    (mine / "loading").mkdir(parents=True)
    (mine / "beside.py").write_text("SAMPLES = 32\n")
    (mine / "loading" / "samples.py").write_text(
        "import numpy as np\n"
        "from beside import SAMPLES\n"
        "def batches(split, epoch):\n"
        "    rng = np.random.default_rng(epoch)\n"
        "    yield rng.standard_normal((SAMPLES, 3, 12, 12)).astype(np.float32), np.arange(SAMPLES) % 10\n"
    )
    done = command(mine, *TRAIN, "loading.samples:batches")
    assert done.returncode == 0, done.stderr


def test_a_data_function_whose_module_fails(tmp_path: Path, files: None, training_runtime: None) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for text, said in (("import sys; sys.exit(7)", "SystemExit: 7"), ("1 / 0", "division by zero"), ("(", "Syntax")):
        (mine / "broken.py").write_text(text)
        done = command(mine, *TRAIN, "broken:batches")
        assert done.returncode == 1 and "cannot be imported" in done.stderr and said in done.stderr
