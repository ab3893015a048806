"""One try: a folder of files, most of them good, and a command line. Everything follows from the seed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from tests.fuzz import corpus, files
from tests.fuzz.mutations import NAMES, Rng, mutate, one_of

CONFIG = '[[layer]]\nname = "conv1"\nkeep = true\n[[layer]]\nregex = "conv[2-9]"\nscheme = "spatial"\nrank = 5\n'
CONFIG += '[[layer]]\nname = "fc"\nratio = 0.5\n'
PREPROCESS = (
    'layout = "nchw"\nscale = 0.01\nmean = [1.0, 2.0, 3.0]\nstd = [1.0, 1.0, 2.0]\ncolor = "bgr"\nlabel_offset = 0\n'
)
TRAINING = (
    'epochs = 1\nbatch = 16\nmicro_batch = 8\nrate = 0.01\nwarmup = 1\nevery = 2\naugment = ["flip"]\n'
    'strategy = "ranks"\nlabels = 0.5\noutput_weights = { logits = 1.0 }\nvalidation = 0.2\n'
)
HOSTILE = ("1e400", "nan", "inf", "-1", "0", "1/0", "", "x", "9" * 400, "1,2,3,4", "\x1b[31m", "0x10", "1e-400", "²")


@dataclass
class Try:
    """What one try is."""

    number: str
    arguments: list[str] = field(default_factory=list)
    mutation: str = ""
    model: str = "m.onnx"
    outputs: tuple[str, ...] = ()
    written: str | None = None
    """The model that the command writes, to be run beside the original."""


@dataclass(frozen=True)
class Material:
    """What takes long to make and is the same for all tries: good files that the product itself wrote."""

    folder: Path
    models: dict[str, bytes]

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


def make(number: str, folder: Path, material: Material) -> Try:
    """Write the files of a try into a folder, which is the current one."""
    seed, index = (int(part) for part in number.split(":"))
    rng = np.random.default_rng([seed, index])
    made = Try(number)
    kinds = list(SUBJECTS)
    weights = np.array([SUBJECTS[kind] for kind in kinds], float)
    kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))](made, folder, material, rng)
    return made


# Good files, and commands.


def _model(made: Try, folder: Path, material: Material, name: str) -> onnx.ModelProto:
    built = onnx.ModelProto.FromString(material.models[name])
    (folder / made.model).write_bytes(material.models[name])
    return built


def _data(folder: Path, built: onnx.ModelProto) -> None:
    np.savez(folder / "d.npz", **corpus.samples(built))


def _compress(made: Try, rng: Rng, *more: str, goal: bool = True) -> None:
    goals = (("--macs", "0.6"), ("--macs", "0.9"), ("--energy", "0.1"), ("--vbmf",), ("--macs", "0.3"))
    made.arguments = ["compress", made.model, *(one_of(rng, goals) or () if goal else ()), *more]
    made.outputs = ("m.lowrank.onnx", "m.lowrank.onnx.data")
    made.written = "m.lowrank.onnx"
    if rng.random() < 0.9:
        made.arguments += ["-o", "out.onnx"]
        made.outputs, made.written = ("out.onnx", "out.onnx.data"), "out.onnx"
    for chance, options, outputs in (
        (0.6, ("--align", "1"), ()), (0.4, ("--no-simplify",), ()), (0.1, ("--json", "j.json"), ("j.json",)),
        (0.1, ("--json", "-"), ()), (0.03, ("--report", "page"), ("page/",)), (0.1, ("--quiet",), ()),
        (0.1, ("--save-plan", "p.toml"), ("p.toml",)),
        (0.2, ("--scheme", str(one_of(rng, ("spatial", "channel", "tucker2", "svd", "channel-mirror")))), ()),
    ):  # fmt: skip
        if rng.random() < chance:
            made.arguments += options
            made.outputs += outputs


def _a_command(made: Try, rng: Rng, built: onnx.ModelProto, folder: Path) -> None:
    """Any command on the model at hand, with good data beside it."""
    kind = str(rng.choice(
        ["inspect", "compress", "data", "bare", "quantize", "export", "evaluate", "bench", "profile", "speedup"],
        p=[0.2, 0.33, 0.16, 0.03, 0.1, 0.08, 0.05, 0.03, 0.01, 0.01],
    ))  # fmt: skip
    if kind in ("data", "quantize", "evaluate"):
        _data(folder, built)
    if kind == "inspect":
        made.arguments = ["inspect", made.model, *(("--json", "-") if rng.random() < 0.3 else ())]
        made.arguments += ["--no-simplify"] if rng.random() < 0.4 else []
    elif kind in ("compress", "bare"):
        _compress(made, rng, goal=kind == "compress")
    elif kind == "data":
        more = (
            *(("--asymmetric",) if rng.random() < 0.2 else ()),
            *(("--test", "d.npz") if rng.random() < 0.2 else ()),
        )
        _compress(made, rng, "--data", "d.npz", *more, goal=rng.random() < 0.85)
    elif kind == "quantize":
        made.arguments = ["quantize", made.model, "-o", "q.onnx", "--data", "d.npz", "--max-drop", "50"]
        made.outputs, made.written = ("q.onnx", "q.onnx.data"), "q.onnx"
    elif kind == "export":
        style = str(one_of(rng, ("fixed", "runtime")))
        made.arguments = ["export", made.model, "-o", "shipped", "--style", style]
        made.outputs, made.written = ("shipped/",), "shipped/m.ort" if style == "fixed" else None
    elif kind == "evaluate":
        _evaluate(made, rng, "d.npz")
    elif kind == "bench":
        made.arguments = ["bench", made.model, "--rounds", "1"]
    elif kind == "profile":
        made.arguments, made.outputs = ["profile", made.model, "-o", "t.json"], ("t.json",)
    else:
        _compress(made, rng, "--speedup", "1.1", goal=False)
    if rng.random() < 0.1 and kind not in ("evaluate",):
        np.savez(folder / "i.npz", **corpus.feeds(built, 2))
        if kind in ("compress", "export", "bench"):
            made.arguments += ["--inputs", "i.npz"]
    if rng.random() < 0.1 and kind not in ("evaluate",):
        value = one_of(rng, built.graph.input)
        sizes = one_of(rng, ("2,3,12,12", "1,20", "4,20", "1", "1,3,16,16", "5,2,12"))
        made.arguments += ["--input-shape", f"{value.name if value else 'x'}:{sizes}"]


def _evaluate(made: Try, rng: Rng, data: str) -> None:
    """By itself or beside itself, by any metric."""
    made.arguments = ["evaluate", made.model, "--data", data]
    if rng.random() < 0.7:
        made.arguments += ["--against", made.model]
    if rng.random() < 0.7:
        metric = one_of(rng, ("top-1", "top-5", "miou", "agreement", "cosine", "snr", "relative-error", "os:getcwd"))
        made.arguments += ["--metric", str(metric)]


# Subjects.


def a_model(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    name = str(one_of(rng, list(material.models)))
    built = _model(made, folder, material, name)
    outside = rng.random() < 0.08
    if outside:
        onnx.save(built, folder / made.model, save_as_external_data=True, location="weights.bin", size_threshold=0)
        built = onnx.load(folder / made.model, load_external_data=False)
    _a_command(made, rng, onnx.ModelProto.FromString(material.models[name]), folder)
    made.mutation = f"{name}: " + "; ".join(mutate(built, rng))
    (folder / made.model).write_bytes(built.SerializeToString())
    if outside and rng.random() < 0.3:
        weights = folder / "weights.bin"
        weights.write_bytes(weights.read_bytes()[: int(rng.integers(weights.stat().st_size))])
        made.mutation += "; weights.bin is cut"


def a_good_model(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """Nothing is wrong: the options vary."""
    name = str(one_of(rng, list(material.models)))
    _a_command(made, rng, _model(made, folder, material, name), folder)
    made.mutation = name


def bytes_of_a_model(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    name = str(one_of(rng, list(material.models)))
    _a_command(made, rng, _model(made, folder, material, name), folder)
    (folder / made.model).write_bytes(files.scrambled(material.models[name], rng))
    made.mutation = f"{name}: bytes"


def another_kind_of_file(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    built = _model(made, folder, material, "net")
    _data(folder, built)
    victim = str(one_of(rng, (made.model, "d.npz")))
    if victim == "d.npz":
        _with_data(made, rng)
    else:
        _a_command(made, rng, built, folder)
    made.mutation = files.odd_file(folder / victim, rng)


def _with_data(made: Try, rng: Rng, data: str = "d.npz") -> None:
    how = int(rng.integers(4))
    if how == 0:
        _evaluate(made, rng, data)
    elif how == 1:
        _compress(made, rng, "--data", data)
    elif how == 2:
        _compress(made, rng, "--test", data)
    else:
        made.arguments = ["quantize", made.model, "-o", "q.onnx", "--data", data, "--max-drop", "50"]
        made.outputs, made.written = ("q.onnx", "q.onnx.data"), "q.onnx"


def samples(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    built = _model(
        made, folder, material, str(one_of(rng, ("net", "net", "separable", "attention", "half", "arg_max")))
    )
    _with_data(made, rng)
    made.mutation = files.archive(corpus.samples(built), rng, folder / "d.npz")


def inputs(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    built = _model(made, folder, material, str(one_of(rng, ("net", "several_inputs", "attention", "half", "lstm"))))
    if rng.random() < 0.6:
        _compress(made, rng, "--inputs", "i.npz")
    elif rng.random() < 0.5:
        made.arguments = ["bench", made.model, "--rounds", "1", "--inputs", "i.npz"]
    else:
        made.arguments = ["export", made.model, "-o", "shipped", "--inputs", "i.npz"]
        made.outputs = ("shipped/",)
    made.mutation = files.archive(corpus.feeds(built, 2), rng, folder / "i.npz")


def many_inputs(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """Samples of a network with several inputs, in an archive that is damaged."""
    built = _model(made, folder, material, "several_inputs")
    _with_data(made, rng)
    made.mutation = "many inputs: " + files.archive(corpus.feeds(built, 40), rng, folder / "d.npz")


def folder_of_samples(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """A file a sample, one of them another thing."""
    held = corpus.samples(_model(made, folder, material, "net"))
    (folder / "samples").mkdir()
    for i in range(40):
        one = {name: array[i] for name, array in held.items()}
        path = folder / "samples" / f"{one_of(rng, ('', 'é', 'x' * 200))}{i}.npz"
        np.savez(path, **one)
        if i == 7:
            made.mutation = "a folder of samples: " + files.archive(one, rng, path)
    _with_data(made, rng, "samples")


BODIES = (
    "yield {'x': X}",
    "yield X[0]",
    "return",
    "yield X[0]; raise ValueError('a\\nb')",
    "yield X[0]; raise SystemExit(3)",
    "yield {'x': X[0]}; yield {'z': X[0]}",
    "yield X[0]; yield X[0][:, :5]",
    "yield X[0], 1; yield X[1]",
    "yield None",
    "yield from ((x, i % 10) for i, x in enumerate(X))",
    "yield from X",
    "yield 'text'",
    "yield X[0] * np.nan",
    "yield from ((x, 'cat') for x in X)",
    "yield {}",
    "yield np.array([None])",
    "1 / 0; yield",
    "yield X[:0]",
)
"""Of functions that yield samples."""
VALUES = (
    "1.0",
    "float('nan')",
    "None",
    "'x'",
    "np.arange(3)",
    "1 / 0",
    "10**400",
    "1j",
    "exit(3)",
    "reference['nobody']",
    "list(outputs.values())[0].mean()",
    "np.float32(0.5)",
    "True",
    "'\\x1b[31m' * 9999",
)
"""Of functions that are metrics."""


def functions(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """Data and metrics of the user's, in a module whose name may be one of the standard library's."""
    _data(folder, _model(made, folder, material, "net"))
    module, second = str(one_of(rng, ("mine", "mine", "json"))), str(one_of(rng, ("reference", "original")))
    unit = str(one_of(rng, ("%", "", "dB", "\x1b[31m")))
    (folder / f"{module}.py").write_text(
        f"import numpy as np\nX = np.load('d.npz')['x']\ndef data():\n    {one_of(rng, BODIES)}\n"
        f"def metric(outputs, {second}):\n    reference = {second}\n    return {one_of(rng, VALUES)}\n"
        f"metric.unit, metric.higher_is_better = {unit!r}, {one_of(rng, (True, False, None))}\n"
    )
    if rng.random() < 0.5:
        _with_data(made, rng, f"{module}:data")
    else:
        _with_data(made, rng)
        if "--metric" in made.arguments:
            del made.arguments[made.arguments.index("--metric") :]
        made.arguments += ["--metric", f"{module}:{one_of(rng, ('metric', 'metric', 'X', 'nobody'))}"]
    made.mutation = (folder / f"{module}.py").read_text()


def output_kinds(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """What outputs are said to be, and where weights are to go."""
    built = _model(made, folder, material, str(one_of(rng, ("net", "several_inputs", "arg_max", "attention"))))
    np.savez(folder / "d.npz", **corpus.samples(built))
    _with_data(made, rng)
    name = str(one_of(rng, [value.name for value in built.graph.output] + ["nobody", "", ":"]))
    kinds = (
        "scores",
        "probabilities",
        "unit-vectors",
        "discrete",
        "items",
        "boxes",
        "values",
        "maps",
        "tokens",
        "x",
        "",
    )
    said = (
        f"{name}:{one_of(rng, kinds)}{one_of(rng, ('', '', ':0', ':1', ':-1', ':9', ':²', ':--1', ':' + '9' * 5000))}"
    )
    made.arguments += ["--output-kind", said]
    if made.arguments[0] == "compress":
        made.arguments += ["--external-data", str(one_of(rng, ("auto", "yes", "no", "x", "")))]
    made.mutation = said[:80]


def images(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    _model(made, folder, material, "net")
    for label in ("cat", "dog", str(one_of(rng, ("\x1b[31m", "bird", ".git")))):
        place = folder / "images" / label
        place.mkdir(parents=True)
        for i in range(int(rng.integers(0, 12))):
            name, data = files.image(rng)
            (place / f"{i}{name}").write_bytes(data)
        if rng.random() < 0.1:
            os.chdir(place)
            made.mutation += files.odd_file(place / "odd.png", rng)
            os.chdir(folder)
    _with_data(made, rng, "images")
    made.arguments += ["--resize", "14", "--crop", "12"] if rng.random() < 0.7 and "evaluate" in made.arguments else []
    made.mutation += "images"


def latency_table(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    _model(made, folder, material, "net")
    (folder / "t.json").write_text(
        files.json_document(material.text("table.json"), rng), encoding="utf-8", errors="replace"
    )
    _compress(made, rng, "--latency-table", "t.json", "--speedup", "1.1", goal=False)
    made.mutation = "latency table"


def configuration(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    _model(made, folder, material, "net")
    (folder / "c.toml").write_text(files.toml_document(CONFIG, rng), encoding="utf-8", errors="replace")
    _compress(made, rng, "--config", "c.toml", goal=rng.random() < 0.5)
    made.mutation = "configuration"


def preprocessing(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    _data(folder, _model(made, folder, material, "net"))
    (folder / "p.toml").write_text(files.toml_document(PREPROCESS, rng), encoding="utf-8", errors="replace")
    _with_data(made, rng)
    made.arguments += ["--preprocess", "p.toml"]
    made.mutation = "preprocessing"


def options(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """Values on the command line."""
    built = _model(made, folder, material, "net")
    _data(folder, built)
    _a_command(made, rng, built, folder)
    flags = (
        "--macs", "--energy", "--speedup", "--max-drop", "--align", "--scheme", "--scale", "--mean", "--std", "--crop",
        "--resize", "--label-offset", "--input-shape", "--threads", "--rounds", "--config", "--data", "--test",
        "--json", "--layout", "--limit", "--timeout", "--provider", "--runtime", "--target", "-o", "--report",
        "--save-plan",
    )  # fmt: skip
    flag = str(one_of(rng, flags))
    hostile = [text for text in (*HOSTILE, *NAMES) if "\0" not in text and text != "/etc/hostname"]
    text = str(one_of(rng, hostile))
    if flag in ("--json", "-o", "--report", "--save-plan"):
        text = str(one_of(rng, [name for name in hostile if "/" not in name]))  # not outside the folder
        made.outputs += (text, f"{text}.data", f"{text}/")
        made.written = None
    made.arguments += [flag, f"x:{text}" if flag == "--input-shape" and rng.random() < 0.7 else text]
    made.mutation = f"{flag} {text!r}"


def clashing_paths(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """What is written is what is read."""
    built = _model(made, folder, material, "net")
    _data(folder, built)
    (folder / "c.toml").write_text(CONFIG)
    (folder / "link.onnx").symlink_to(made.model)
    os.link(folder / "d.npz", folder / "hard.npz")
    command = str(one_of(rng, ("compress", "inspect", "quantize", "profile", "export", "evaluate")))
    read = [made.model, "link.onnx", "./m.onnx", f"../{folder.name}/m.onnx"]
    read += ["d.npz", "hard.npz"] if command in ("compress", "quantize", "evaluate") else []
    read += ["c.toml"] if command == "compress" else []
    victim = str(one_of(rng, read))
    if command == "compress":
        _compress(made, rng, "--data", "d.npz", "--config", "c.toml")
        made.arguments += [str(one_of(rng, ("-o", "--json", "--save-plan", "--report", "--run"))), victim]
    elif command == "evaluate":
        made.arguments = ["evaluate", made.model, "--data", "d.npz", "--json", victim]
    elif command == "inspect":
        made.arguments = ["inspect", made.model, "--json", victim]
    else:
        made.arguments = [command, made.model, "-o", "." if command == "export" and rng.random() < 0.5 else victim]
        made.arguments += ["--data", "d.npz"] if command == "quantize" else []
    made.outputs += tuple(f"m.{ending}" for ending in ("ort", "required_operators_and_types.config"))
    made.outputs += ("manifest.json",)
    made.written = None
    made.mutation = f"{command} onto {victim}"


def training(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    _data(folder, _model(made, folder, material, "net"))
    (folder / "t.toml").write_text(files.toml_document(TRAINING, rng), encoding="utf-8", errors="replace")
    _compress(made, rng, "--train", "--data", "d.npz", "--training", "t.toml")
    made.arguments += ["--epochs", "1"]
    made.outputs += ("out.onnx.trp-run/", "m.lowrank.onnx.trp-run/")
    made.mutation = "training options"


def checkpoint(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """A run that was interrupted, some of its files damaged."""
    _data(folder, _model(made, folder, material, "net"))
    (folder / "t.toml").write_text(TRAINING)
    run = folder / "out.onnx.trp-run"
    shutil.copytree(material.folder / "run", run)
    victim = str(one_of(rng, sorted(path.name for path in run.iterdir() if path.is_file())))
    path = run / victim
    if victim.endswith(".npz") and rng.random() < 0.6:
        with np.load(path) as held:
            arrays = dict(held)
        made.mutation = files.archive(arrays, rng, path)
    elif victim.endswith(".json") and rng.random() < 0.6:
        path.write_text(files.json_document(path.read_text(), rng), encoding="utf-8", errors="replace")
    else:
        path.write_bytes(files.scrambled(path.read_bytes(), rng))
    made.arguments = json.loads(material.text("training-command.json"))
    made.outputs, made.written = ("out.onnx", "out.onnx.data", "out.onnx.trp-run/"), "out.onnx"
    made.mutation = f"{victim} of a run: {made.mutation or 'bytes'}"


def cache(made: Try, folder: Path, material: Material, rng: Rng) -> None:
    """Measurements that are kept, some of them damaged."""
    _data(folder, _model(made, folder, material, "net"))
    kept = Path(os.environ["TRP_ONNX_CACHE"])
    shutil.copytree(material.folder / "cache", kept, dirs_exist_ok=True)
    entries = sorted(path for path in kept.rglob("*") if path.is_file())
    for path in entries:
        if rng.random() < 0.3:
            path.write_text(files.json_document(path.read_text(), rng), encoding="utf-8", errors="replace")
    made.arguments = json.loads(material.text("cached-commands.json"))[int(rng.integers(2))]
    made.outputs, made.written = ("out.onnx", "out.onnx.data"), "out.onnx"
    made.mutation = "cache"


SUBJECTS: dict[Callable[[Try, Path, Material, Rng], None], float] = {
    a_model: 55, a_good_model: 8, many_inputs: 2, folder_of_samples: 2, functions: 2, output_kinds: 1.5,
    bytes_of_a_model: 3, another_kind_of_file: 2, samples: 5, inputs: 3, images: 3,
    latency_table: 2, configuration: 3, preprocessing: 2, options: 3, clashing_paths: 2, training: 0.5, checkpoint: 0.5,
    cache: 1,
}  # fmt: skip
