"""Tables of README, docs and LEADERBOARD.md, from the committed results.

    python benchmarks/leaderboard.py            # writes them
    python benchmarks/leaderboard.py --check    # exits with 1 where a page differs from the results, and says where

A page holds a table between two comments:

    <!-- table: accuracy/by-weights -->

    ...

    <!-- end of table -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import accuracy
import edge
import latency
import real_models
import runtimes
import tasks
import training_generality
import training_speed
import trp_cifar10
import verdicts
import without_training
from _results import Row, by_network, faster, markdown, name_of, rows_of

ROOT = Path(__file__).parent.parent
CIFAR = "CIFAR-10, top-1 of 10,000 images"
TASKS = {
    "resnet20": CIFAR,
    "resnet56": CIFAR,
    "squeezenet": "ImageNet, top-1 of 488 images",
    "mobilenet_v2": "ImageNet, top-1 of 488 images",
    "squeezenet1.1_imagenet": "ImageNet, top-1 of 1000 images, 900 of them trained on",
    "mobilenet_v2_1.0_224_imagenet_a": "ImageNet, top-1 of 1000 images, 900 of them trained on",
    "resnet18": "speed alone",
    "crnn": "lines read exactly, of 300",
    "ppocr_rec": "lines read exactly, of 300",
    "minilm": "Spearman x 100, 1749 pairs of sentences",
}
BY_RANK = {
    "alone": "`--no-widths`",
    "in turn": "`--asymmetric --no-widths`",
    "ranks and widths": "`--asymmetric`",
}
"""Options of methods of `without_training` and `tasks`; a method that is not here is not on the board."""

README = {
    ("resnet56", "1.5x", "in turn"): "ResNet-56, 3x3 convolutions",
    ("resnet20", "1.5x", "in turn"): "ResNet-20, the same of 16 to 64 channels",
    ("crnn", "1.5x", "in turn"): "CRNN, a recurrent text reader",
    ("ppocr_rec", "1.3x", "ranks and widths"): "PP-OCR, a text reader of thin convolutions",
    ("minilm", "1.2x", "in turn"): "MiniLM, a transformer encoder",
    ("mobilenet_v2", "1.15x", "ranks and widths"): "MobileNetV2, depthwise and 1x1 convolutions",
}
"""Rows of the README, and what they say of the network."""


def fitted() -> Iterator[Row]:
    """Rows of what is compressed with samples and not trained, told alike."""
    for row in rows_of("without_training"):
        if "after" in row:
            scores = {"before": 100 * row["before"], "after": 100 * row["after"], "unit": "%"}
            yield row | scores | {"lost": -row["points"], "asked": f"{row['speedup']:g}x"}
    for row in rows_of("tasks"):
        if "after" in row:
            yield row | {"asked": tasks.asked_for(row), "unit": tasks.unit_of(row)}


def rank_rows() -> Iterator[Row]:
    """Ranks, and widths, without training."""
    for row in fitted():
        if row["method"] in BY_RANK:
            yield row | {"how": BY_RANK[row["method"]], "speed": faster(row), "minutes": row["seconds"] / 60}


def trained_rows() -> Iterator[Row]:
    """Networks that were trained."""
    for row in rows_of("trp_cifar10"):
        if row["epochs"]:
            how = f"`--train`, {row['epochs']} epochs: {trp_cifar10.label_of(row['row'])}"
            yield row | {
                "before": 100 * trp_cifar10.DENSE[row["net"]], "after": 100 * row["test"], "unit": "%",
                "asked": f"1/{row['macs_ratio']:.3g} of the MACs", "how": how, "speed": f"{row['latency_ratio']:.2f}x",
                "minutes": row["train_seconds"] / 60,
            }  # fmt: skip
    for row in rows_of("training_generality"):
        if "top1_trained" in row:
            yield row | {
                "before": 100 * row["top1_dense"], "after": 100 * row["top1_trained"], "unit": "%",
                "asked": f"{row['macs']:g} of the MACs", "how": f"`--train --labels 0`, {row['steps']} steps",
                "minutes": row["seconds"] / 60,
            }  # fmt: skip


def shipped_rows() -> Iterator[Row]:
    """Files of low rank and in int8, `.onnx` against `.onnx`."""
    rows = rows_of("edge")
    dense = {row["net"]: row for row in rows if row["file"] == "dense"}
    for row in rows:
        if row["file"] in edge.FILES and row["file"] != "dense":
            found = row | {"how": edge.FILES[row["file"]], "speed": faster(row, "speedup")}
            if "top1" in row:
                found |= {"before": 100 * dense[row["net"]]["top1"], "after": 100 * row["top1"], "unit": "%"}
            yield found


def board() -> str:
    """Every row of the leaderboard; what the results do not have is empty."""
    lines = []
    for row in by_network([*rank_rows(), *trained_rows(), *shipped_rows()]):
        score = f"{row['before']:.2f}{row['unit']} -> {row['after']:.2f}{row['unit']}" if "after" in row else ""
        lines.append((
            name_of(row["net"]), TASKS.get(row["net"], ""), row.get("asked", ""), row["how"], score,
            row.get("speed", ""), f"{row['bytes'] / 1e6:.2f} MB" if "bytes" in row else "",
            f"{row['minutes']:.1f}" if "minutes" in row else "", row.get("hardware", ""), row.get("commit", ""),
        ))  # fmt: skip
    header = ("network", "task", "asked", "how", "score", "speed-up", "file", "minutes", "hardware", "commit")
    return markdown(header, lines)


def readme() -> str:
    """What the README says of six networks."""
    found = {(row["net"], row["asked"], row["method"]): row for row in fitted()}
    lines = []
    for key, network in README.items():
        row, what = found[key], {"resnet": "top-1", "mobile": "top-1", "minilm": "correlation"}
        of = next((word for start, word in what.items() if row["net"].startswith(start)), "lines")
        points = f"{abs(row['lost']):.2f} points of {of} {'lost' if row['lost'] > 0 else 'gained'}"
        lines.append(
            (
                network,
                f"{points} at {row['measured']:.2f}x",
                f"`--speedup {row['asked'][:-1]} {BY_RANK[row['method']][1:]}",
            )
        )
    return markdown(("network", "was measured, one thread", "by `--data SAMPLES` and"), lines)


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    "leaderboard": board,
    "accuracy/by-weights": lambda: accuracy.table(rows_of("accuracy")),
    "accuracy/with-data": lambda: without_training.table(rows_of("without_training")),
    "accuracy/tasks": lambda: tasks.table(rows_of("tasks")),
    "edge/int8": lambda: edge.table(rows_of("edge")),
    "edge/runtimes": lambda: runtimes.table(rows_of("runtimes")),
    "planning/asked": lambda: latency.asked_table(rows_of("latency"), "asked"),
    "planning/asked-burn": lambda: latency.asked_table(rows_of("latency"), "asked-burn"),
    "planning/predicted": lambda: latency.predicted_table(rows_of("latency")),
    "planning/realised": lambda: latency.realised_table(rows_of("latency")),
    "planning/by-macs": lambda: latency.by_macs_table(rows_of("latency")),
    "real-models": lambda: real_models.table(rows_of("real_models")),
    "verdicts": lambda: verdicts.table(rows_of("verdicts")),
    "training/speed": lambda: training_speed.table(rows_of("training_speed")),
    "training/other-networks": lambda: training_generality.table(rows_of("training_generality")),
} | {f"training/{net}": partial(lambda net: trp_cifar10.table(rows_of("trp_cifar10"), net), net)
     for net in trp_cifar10.DENSE}  # fmt: skip

BETWEEN = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def pages(root: Path) -> list[Path]:
    """Where tables may stand."""
    return [root / "README.md", root / "benchmarks" / "LEADERBOARD.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str) -> tuple[str, list[str]]:
    """A page with the tables of the results, and the names of those that it had otherwise."""
    stale = []

    def fill(found: re.Match[str]) -> str:
        start, name, old, end = found.groups()
        new = f"\n{TABLES[name]()}\n\n"
        if new != old:
            stale.append(name)
        return f"{start}{new}{end}"

    return BETWEEN.sub(fill, text), stale


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which tables differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of README.md, docs and benchmarks")
    arguments = parser.parse_args()
    wrong, seen = [], set[str]()
    for page in pages(arguments.root):
        text = page.read_text(encoding="utf-8")
        seen |= {found[2] for found in BETWEEN.finditer(text)}
        new, stale = filled(text)
        wrong += [
            f"{page.relative_to(arguments.root)}: the table '{name}' is not that of the results" for name in stale
        ]
        if stale and not arguments.check:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {', '.join(stale)} of {page.relative_to(arguments.root)}")
    missing = [f"no page has the table '{name}'" for name in sorted(TABLES.keys() - seen)]
    if arguments.check and wrong:
        missing = [*wrong, *missing, "run python benchmarks/leaderboard.py"]
    sys.exit("\n".join(missing) or None)


if __name__ == "__main__":
    main()
