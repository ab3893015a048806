"""The paper's table on CIFAR-10, from pretrained ONNX networks.

    python benchmarks/trp_cifar10.py --models DIR --train cifar10_train.npz --test cifar10_test.npz \
        --out DIR [ROW ...]

trains the rows that are named (`--list` lists them) or missing, one after the other. A row that was stopped
goes on where it was. It writes `<out>/<row>.onnx`, and a line in results/trp_cifar10.json: validation and
test accuracy of that file, MACs, parameters, measured latency, ranks, seed, sha256. The test images are run
once, after the file is written; 4 % of the training images choose the epoch.

Ratios are the paper's (arXiv 1812.02402, table 1). All rows have the same 12 epochs, but for ResNet-20's best:
ours are the defaults of `--train`; ResNet-20's best train twice as long with ResNet-56 for a teacher, ResNet-56's are
the defaults, which is what 90 minutes hold.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _results import NAMES, Results, markdown

import trp_onnx
from trp_onnx import Goal, NetworkOptions, SearchSpace, Training, TrainingOptions

CIFAR = trp_onnx.Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EPOCHS = 12
VALIDATION = 0.04
NUCLEAR = 3e-4  # the paper's
ENERGY = 0.05  # with the paper's 0.02 the ratchet stops above these MACs in so few epochs
BEST = {"epochs": 24}  # and a stronger teacher


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        net: The pretrained network.
        ratio: MACs before / after.
        scheme: How layers are split.
        training: What differs from the defaults of `TrainingOptions`; None for no training.
        energy: e of the paper's rule.
        teacher: Another network to learn from.
    """

    net: str
    ratio: float
    scheme: str = "spatial"
    training: dict[str, Any] | None = field(default_factory=dict)
    energy: float | None = None
    teacher: str | None = None


def _paper(nuclear: float = 0.0, **more: Any) -> dict[str, Any]:
    """The paper's training: labels alone, its own ratchet."""
    return {"strategy": "paper", "distill": 0.0, "nuclear": nuclear} | more


RETRAIN = {"epochs": 0, "distill": 0.0, "finetune_epochs": EPOCHS, "finetune_rate": 0.05}
PAPER_RATIOS = {"channel": (1.97, 2.17), "spatial": (2.66, 2.84)}

ROWS: dict[str, Row] = {}
for _scheme, _ratios in PAPER_RATIOS.items():
    for _ratio in _ratios:
        ROWS[f"r20-direct-{_ratio}"] = Row("resnet20", _ratio, _scheme, None)
        ROWS[f"r20-retrain-{_ratio}"] = Row("resnet20", _ratio, _scheme, RETRAIN)
ROWS |= {
    "r20-trp1-1.97": Row("resnet20", 1.97, "channel", _paper(), ENERGY),
    "r20-trp1-nu-2.17": Row("resnet20", 2.17, "channel", _paper(NUCLEAR), ENERGY),
    "r20-trp2-2.66": Row("resnet20", 2.66, "spatial", _paper(), ENERGY),
    "r20-trp2-nu-2.84": Row("resnet20", 2.84, "spatial", _paper(NUCLEAR), ENERGY),
    "r20-ours-2.84": Row("resnet20", 2.84),
    "r20-best-2.84": Row("resnet20", 2.84, training=BEST, teacher="resnet56"),
    "r20-best-3.6": Row("resnet20", 3.6, training=BEST, teacher="resnet56"),
    "r20-labelled-2": Row("resnet20", 2.0),
    "r20-unlabelled-2": Row("resnet20", 2.0, training={"labels": 0.0}),
    "r56-trp2-nu-2.5": Row("resnet56", 2.5, "spatial", _paper(NUCLEAR), ENERGY),
    "r56-best-2.5": Row("resnet56", 2.5),
    "r56-trp2-nu-4.5": Row("resnet56", 4.5, "spatial", _paper(NUCLEAR), ENERGY),
    "r56-best-4.5": Row("resnet56", 4.5),
}


def main() -> None:
    """Train what is asked for or missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "train", "test", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--again", action="store_true", help="train named rows again, and compare")
    parser.add_argument("rows", nargs="*", metavar="ROW")
    arguments = parser.parse_args()
    results = Results("trp_cifar10", key=("row",))
    if arguments.list:
        print(*ROWS, sep="\n")
        return
    for name in arguments.rows or ROWS:
        if results.has(row=name) and not arguments.again:
            continue
        row = measure(name, ROWS[name], arguments)
        print(row, flush=True)
        if results.has(row=name):
            known = next(r for r in results.rows if r["row"] == name)
            same = all(known[key] == row[key] for key in ("test", "validation", "sha256"))
            print(f"{name}: {'the same' if same else 'NOT the same'} as in the results")
        else:
            results.add(row)
    print(*(table(results.rows, net) for net in DENSE), sep="\n\n")


def measure(name: str, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """One line: compress, then evaluate the file that was written."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = arguments.models / f"{row.net}_cifar10_bn.onnx"
    written = arguments.out / f"{name}.onnx"
    run = arguments.out / f"{name}.run"
    options = {"epochs": EPOCHS, "validation": VALIDATION, "workers": arguments.workers} | (row.training or {})
    start = time.perf_counter()
    teacher = None if row.teacher is None else arguments.models / f"{row.teacher}_cifar10.onnx"
    training = None if row.training is None else Training(TrainingOptions(**options), teacher, run, resume=True)
    report = trp_onnx.compress(
        source, written, Goal(macs=1 / row.ratio, energy=row.energy),
        data=None if training is None else arguments.train, search=SearchSpace(scheme=row.scheme, align=1),
        training=training, network=NetworkOptions(preprocessing=CIFAR),
    ).report  # fmt: skip
    wall = time.perf_counter() - start
    test = trp_onnx.evaluate(written, arguments.test, preprocessing=CIFAR)
    trained = report.trained
    dense = arguments.models / f"{row.net}_cifar10.onnx"
    line: dict[str, Any] = {
        "row": name, "net": row.net, "scheme": row.scheme, "seed": TrainingOptions().seed,
        "epochs": 0 if trained is None else trained.epochs,
        "test": test.value / 100,
        "validation": None if trained is None or trained.correct is None else trained.correct / trained.samples,
        "validation_correct": None if trained is None else trained.correct,
        "validation_correct_written": None if trained is None else trained.written_correct,
        "macs_ratio": round(1 / report.macs.ratio, 4),
        "parameters": report.parameters.after, "parameters_ratio": round(1 / report.parameters.ratio, 4),
        "latency_ratio": round(trp_onnx.bench([dense, written]).contenders[1].ratio.median, 3),
        "train_seconds": None if trained is None else round(trained.seconds),
        "wall_seconds": round(wall),
        "training": row.training, "energy": row.energy, "teacher": row.teacher,
        "sha256": hashlib.sha256(written.read_bytes()).hexdigest(),
        "plan": {d.name: [d.scheme, *(d.rank or ())] for d in report.layers if d.scheme},
    }  # fmt: skip
    shutil.rmtree(run, ignore_errors=True)
    return line


DENSE = {"resnet20": 0.9173, "resnet56": 0.9339}

LABELS = {
    "r20-ours-2.84": "the defaults: fixed ranks, 0.3 labels + 0.7 distillation",
    "r20-best-2.84": "the defaults, with ResNet-56 for a teacher",
    "r20-best-3.6": "the defaults, with ResNet-56 for a teacher",
    "r20-trp1-1.97": "the paper's TRP1 (labels, its ratchet, e = 0.05)",
    "r20-trp1-nu-2.17": "the paper's TRP1+Nu (labels, its ratchet, e = 0.05, lambda = 3e-4)",
    "r20-trp2-2.66": "the paper's TRP2 (labels, its ratchet, e = 0.05)",
    "r20-trp2-nu-2.84": "the paper's TRP2+Nu (labels, its ratchet, e = 0.05, lambda = 3e-4)",
    "r20-labelled-2": "the defaults, with labels",
    "r20-unlabelled-2": "the defaults, **no labels at all**",
    "r56-best-2.5": "the defaults",
    "r56-best-4.5": "the defaults",
}
LABELS |= {f"r56-trp2-nu-{ratio}": LABELS["r20-trp2-nu-2.84"] for ratio in (2.5, 4.5)}
"""What rows are in words; the others' names say it."""

PUBLISHED = {
    "resnet20": ("*as published: TRP2+Nu*", "2.84x", "90.62%"),
    "resnet56": ("*as published: TRP2*", "2.43x", "92.63%"),
}
"""Table 1 of the paper: 164 epochs, from scratch."""


def label_of(name: str) -> str:
    """A row in words."""
    for kind, words in (("direct", "direct"), ("retrain", "direct, then its factors retrained (labels)")):
        if f"-{kind}-" in name:
            return words
    return LABELS.get(name, name)


def table(measured: Sequence[dict[str, Any]], net: str) -> str:
    """The rows of one network, in the order of `ROWS`."""
    header = (
        f"{NAMES[net]}, {100 * DENSE[net]:.2f} %", "scheme", "MACs", "top-1, 10,000 test images", "held out",
        "parameters", "latency, one core", "epochs", "minutes on two cores",
    )  # fmt: skip
    found = {row["row"]: row for row in measured if row["net"] == net}
    lines = []
    for name in (*(name for name in ROWS if name in found), *(name for name in found if name not in ROWS)):
        row = found[name]
        lines.append((
            label_of(name), row["scheme"], f"{row['macs_ratio']:.2f}x", f"{row['test']:.2%}",
            "" if row["validation"] is None else f"{row['validation']:.2%}", f"{row['parameters'] / 1e3:.0f} k",
            f"{row['latency_ratio']:.2f}x", row["epochs"],
            "" if row["train_seconds"] is None else f"{row['train_seconds'] / 60:.0f}",
        ))  # fmt: skip
    label, macs, top1 = PUBLISHED[net]
    return markdown(header, [*lines, (label, "", macs, top1, "", "", "", "164, from scratch", "")])


if __name__ == "__main__":
    main()
