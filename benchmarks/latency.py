"""What the latency table and the fair protocol are worth, in time alone. Run it on a machine that does nothing else.

aa           two sessions of one model against each other, 20 times 50 rounds: how far from 1
predicted    the planner's network time against the measured one, at three speed-ups a network
realised     measured speed-up over the MACs ratio on a ResNet-18-shaped network, in both layouts
by-macs      ranks planned by time against ranks planned by MACs, at the same total weight error
cost         seconds to plan for a ResNet-50-shaped network, with an empty cache and with a full one
asked        compress --speedup 1.2, 1.3 and 1.5, and what bench says of the file, in a process of its own; bench is
             repeated, 5 times at most, while it says that the machine is slower than before
asked-burn   the same, planned beside a process that burns one core, with a cache of its own; it is stopped before bench

python benchmarks/latency.py --models DIR [--lines DIR] [--only KIND ...] [--with-data]

DIR of --lines holds crnn.onnx and ppocr_rec.onnx, and crnn_cal.npz and ppocr_rec_cal.npz for --with-data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _networks import resnet18, resnet50
from _results import Results, Row, by_network, markdown, name_of

import trp_onnx
from trp_onnx.graph.layers import find_layers
from trp_onnx.graph.model import open_model
from trp_onnx.graph.session import feeds_for
from trp_onnx.latency import measure, profile, save_table
from trp_onnx.latency.profiling import measure_table
from trp_onnx.passes.normalise import normalise
from trp_onnx.planning import Evidence, Plan, Planner
from trp_onnx.runners import open_runner

FILES = {
    "resnet20": "resnet20_cifar10.onnx",
    "resnet56": "resnet56_cifar10.onnx",
    "squeezenet": "squeezenet1.1_imagenet.onnx",
    "mobilenet_v2": "mobilenet_v2_1.0_224_imagenet_a.onnx",
}
PARTS = (0.3, 0.6, 0.9)
"""Speed-ups that are asked for, as parts of the way to the fastest plan."""

RATIOS = (0.7, 0.5, 0.35)
ASKED = (1.2, 1.3, 1.5)
LINES = {"crnn": "image:1,1,64,320", "ppocr_rec": "x:1,3,48,320"}
"""Text line readers, and the sizes of their inputs."""

KINDS = ("aa", "predicted", "realised", "by-macs", "cost", "asked", "asked-burn")


def main() -> None:
    """Measure the rows that are missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--with-data", action="store_true")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    results = Results("latency", key=("kind", "net", "case"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        models = {name: arguments.models / file for name, file in FILES.items()}
        models["resnet18"] = resnet18(place)
        measure = {"aa": aa, "predicted": predicted, "realised": realised, "by-macs": by_macs}
        for kind in arguments.only:
            if kind == "cost":
                cost(results, place)
            elif kind.startswith("asked"):
                asked(results, kind, arguments, place)
            else:
                for name, model in models.items():
                    measure[kind](results, name, model, place)
    for kind in KINDS:
        rows = [row for row in results.rows if row["kind"] == kind]
        if rows:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            print(markdown(columns, [[row.get(column, "") for column in columns] for row in rows]), end="\n\n")


def add(results: Results, **row: Any) -> None:
    results.add(row)
    print(row, flush=True)


def aa(results: Results, name: str, model: Path, _: Path) -> None:
    """Two sessions of one file."""
    if name not in ("resnet20", "resnet18") or results.has(kind="aa", net=name, case="50 rounds"):
        return
    feeds = feeds_for(open_model(model))
    errors, runner = [], open_runner()
    for _repeat in range(20):
        runner.prepare([model, model], feeds)
        errors.append(abs(measure(runner.run, 2, 50).ratios[1].median - 1))
    add(results, kind="aa", net=name, case="50 rounds", repeats=20, max_error=round(max(errors), 5),
        rms_error=round(float(np.sqrt(np.mean(np.square(errors)))), 5))  # fmt: skip


def _planner(model: Path, align: int | None = None) -> Planner:
    normal = normalise(open_model(model))
    layers = find_layers(normal)
    table = measure_table(normal, layers, feeds_for(normal))
    return Planner(layers, align=align or table.step, evidence=Evidence(table=table))


def predicted(results: Results, name: str, model: Path, place: Path) -> None:
    """Three speed-ups between 1 and the fastest."""
    fastest = _planner(model).fastest()
    for part in PARTS:
        case = f"{part:g} of the way"
        if results.has(kind="predicted", net=name, case=case):
            continue
        goal = trp_onnx.Goal(speedup=1 + part * (fastest - 1))
        report = trp_onnx.compress(model, place / "out.onnx", goal).report
        assert report.latency is not None
        first = report.latency.trials[0]  # before the plan is made again by what was measured
        add(results, kind="predicted", net=name, case=case, predicted=round(first.predicted, 4),
            measured=round(first.measured.median, 4), low=round(first.measured.low, 4),
            high=round(first.measured.high, 4), time_error=round(first.measured.median / first.predicted - 1, 4),
            macs_ratio=round(report.macs.ratio, 4))  # fmt: skip


def realised(results: Results, name: str, model: Path, place: Path) -> None:
    """In blocked layout, as a plain .onnx runs on x86, and without it, as an .ort or ARM does."""
    if name != "resnet18":
        return
    for provider in ("cpu", "cpu-im2col"):
        table = place / "table.json"
        for ratio in RATIOS:
            for scheme in ("spatial", "auto"):
                case = f"{provider} {scheme} {ratio:g}"
                if results.has(kind="realised", net=name, case=case):
                    continue
                save_table(profile(model, provider=provider), table)
                speedup = _speedup_at(model, table, scheme, ratio)
                report = trp_onnx.compress(
                    model, place / "out.onnx", trp_onnx.Goal(speedup=speedup),
                    search=trp_onnx.SearchSpace(scheme=scheme), device=trp_onnx.Device(latency_table=table),
                ).report  # fmt: skip
                assert report.latency is not None and report.latency.measured is not None
                measured, saved = report.latency.measured.median, 1 / report.macs.ratio
                add(results, kind="realised", net=name, case=case, macs_saved=round(saved, 3),
                    measured=round(measured, 3), of_macs=round(measured / saved, 3))  # fmt: skip


def _speedup_at(model: Path, table: Path, scheme: str, ratio: float) -> float:
    """The speed-up at which a plan by time keeps about so much of the MACs."""
    from trp_onnx.latency import read_table

    normal = normalise(open_model(model))
    found = read_table(table)
    planner = Planner(find_layers(normal), scheme=scheme, align=found.step, evidence=Evidence(table=found))
    low, high = 1.01, planner.fastest()
    for _ in range(20):
        middle = (low + high) / 2
        plan = planner.plan(trp_onnx.Goal(speedup=middle))
        low, high = (middle, high) if plan.macs_after / plan.macs_before > ratio else (low, middle)
    return low


def by_macs(results: Results, name: str, model: Path, place: Path) -> None:
    """A plan by MACs, and the fastest plan by time that loses no more weight energy in all."""
    for ratio in (0.8, 0.6):
        for align, label in ((1, "align 1"), (None, "align auto")):
            case = f"MACs {ratio:g}, {label}"
            if results.has(kind="by-macs", net=name, case=case):
                continue
            timed = _planner(model)
            try:
                plain = _planner(model, align).plan(trp_onnx.Goal(macs=ratio))
            except trp_onnx.TargetError as error:
                add(results, kind="by-macs", net=name, case=case, unreachable=str(error))
                continue
            budget = _error(plain)
            low, high = 1.0, timed.fastest()
            best: Plan | None = None
            for _ in range(25):
                middle = (low + high) / 2
                try:
                    plan = timed.plan(trp_onnx.Goal(speedup=middle))
                except trp_onnx.TargetError:
                    high = middle
                    continue
                if _error(plan) <= budget:
                    low, best = middle, plan
                else:
                    high = middle
            files = []
            for label_, plan in (("macs", plain), ("time", best)):
                if plan is None:
                    continue
                files.append(place / f"{label_}.onnx")
                trp_onnx.compress(model, files[-1], plan)
            ratios = trp_onnx.bench([model, *files]).contenders
            add(results, kind="by-macs", net=name, case=case, error=round(budget, 4),
                plan_by_macs=round(ratios[1].ratio.median, 3),
                plan_by_time=round(ratios[2].ratio.median, 3) if best is not None else None)  # fmt: skip


def _error(plan: Plan) -> float:
    return sum(decision.relative_error**2 for decision in plan.decisions)


def cost(results: Results, place: Path) -> None:
    """Planning alone: open, simplify, time the layers, survey, allocate."""
    if results.has(kind="cost", net="resnet50", case="empty cache"):
        return
    model = resnet50(place)
    before = os.environ.get("TRP_ONNX_CACHE")
    os.environ["TRP_ONNX_CACHE"] = str(place / "cache")
    try:
        for case in ("empty cache", "full cache"):
            start = time.perf_counter()
            _planner(model).plan(trp_onnx.Goal(speedup=1.5))
            add(results, kind="cost", net="resnet50", case=case, seconds=round(time.perf_counter() - start, 1))
    finally:
        del os.environ["TRP_ONNX_CACHE"]
        if before is not None:
            os.environ["TRP_ONNX_CACHE"] = before


def asked(results: Results, kind: str, arguments: argparse.Namespace, place: Path) -> None:
    """Each network at each speed-up, by the command line."""
    nets = {name: (arguments.models / FILES[name], None) for name in FILES}
    if arguments.lines is not None:
        nets |= {name: (arguments.lines / f"{name}.onnx", shape) for name, shape in LINES.items()}
    for name, (model, shape) in nets.items():
        sizes = [] if shape is None else ["--input-shape", shape]
        data = ["--data", str(arguments.lines / f"{name}_cal.npz")] if shape and arguments.with_data else []
        for speedup in ASKED:
            case = f"{speedup:g}{', with data' if data else ''}"
            if results.has(kind=kind, net=name, case=case):
                continue
            out, burner = place / "asked.onnx", None
            environment = dict(os.environ)
            if kind == "asked-burn":
                environment["TRP_ONNX_CACHE"] = str(place / "burnt-cache")
                burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            start = time.perf_counter()
            try:
                command = ["compress", str(model), "-o", str(out), "--speedup", str(speedup), *sizes, *data]
                done = trp(*command, "--json", "-", environment=environment)
            finally:
                if burner is not None:
                    burner.kill()
                    burner.wait()
            seconds = round(time.perf_counter() - start, 1)
            if done.returncode:
                add(results, kind=kind, net=name, case=case, seconds=seconds, exit=done.returncode,
                    said=done.stderr.strip().splitlines()[-1])  # fmt: skip
                continue
            report = json.loads(done.stdout)
            for again in range(5):
                time.sleep(10 if again else 0)
                bench = json.loads(trp("bench", str(model), str(out), *sizes, "--json", "-").stdout)
                if not any("slower than before" in said for said in bench["notes"]):
                    break
            ratio, trials = bench["contenders"][1]["ratio"], report["latency"]["trials"]
            add(results, kind=kind, net=name, case=case, seconds=seconds, exit=0,
                predicted=round(trials[0]["predicted"], 4), trials=len(trials),
                measured=round(ratio["median"], 4), low=round(ratio["low"], 4), high=round(ratio["high"], 4),
                within=abs(ratio["median"] / speedup - 1) <= 0.03, block=report["align"],
                kernels=report["latency"]["target"], macs_ratio=round(report["macs"]["ratio"], 4), benches=again + 1,
                notes=[*report["latency"]["doubts"], *bench["notes"]])  # fmt: skip


def trp(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command, in a process of its own."""
    command = [sys.executable, "-m", "trp_onnx", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


LONG = {"crnn": "CRNN, 64 x 320", "ppocr_rec": "PP-OCR recogniser, 48 x 320"}


def _nets(rows: Sequence[Row]) -> dict[str, str]:
    """Networks and what tables call them, in order."""
    return {row["net"]: LONG.get(row["net"], name_of(row["net"])) for row in by_network(rows)}


def asked_table(measured: Sequence[Row], kind: str) -> str:
    """Speed-ups that were asked for, and what `bench` says."""
    rows = [row for row in measured if row["kind"] == kind]
    found = {(row["net"], row["case"]): f"{row['measured']:.3f}" for row in rows if "measured" in row}
    lines = [(name, *(found.get((net, f"{s:g}"), "") for s in ASKED)) for net, name in _nets(rows).items()]
    return markdown(("network", f"asked {ASKED[0]:g}x", *(f"{s:g}x" for s in ASKED[1:])), lines)


def predicted_table(measured: Sequence[Row]) -> str:
    """Predicted and measured, at three budgets."""
    rows = [row for row in measured if row["kind"] == "predicted"]
    found = {(row["net"], row["case"]): f"{row['predicted']:.2f} / {row['measured']:.2f}" for row in rows}
    lines = [(name, *(found[net, f"{part:g} of the way"] for part in PARTS)) for net, name in _nets(rows).items()]
    return markdown(("network", *(f"{part:.0%} of the way" for part in PARTS)), lines)


def realised_table(measured: Sequence[Row]) -> str:
    """What a saved MAC is worth."""
    found = {row["case"]: f"{row['measured']:.2f}x of {row['macs_saved']:.2f}x" for row in measured
             if row["kind"] == "realised"}  # fmt: skip
    layouts = {"cpu": "blocked layout", "cpu-im2col": "im2col"}
    lines = [
        (f"{layouts[provider]}, {scheme}", *(found[f"{provider} {scheme} {ratio:g}"] for ratio in RATIOS))
        for provider in layouts for scheme in ("spatial", "auto")
    ]  # fmt: skip
    return markdown(("", *(f"MACs {ratio:.2f}" for ratio in RATIOS)), lines)


def by_macs_table(measured: Sequence[Row]) -> str:
    """Ranks by MACs and by time."""
    rows = [row for row in measured if row["kind"] == "by-macs"]
    found = {(row["net"], row["case"]): row for row in rows}
    lines = []
    for net, name in _nets(rows).items():
        for ratio in (0.8, 0.6):
            free, blocks = (found[net, f"MACs {ratio:g}, {label}"] for label in ("align 1", "align auto"))
            timed = ", ".join(f"{row['plan_by_time']:.2f}x" for row in (free, blocks))
            lines.append((name, ratio, f"{free['plan_by_macs']:.2f}x", f"{blocks['plan_by_macs']:.2f}x", timed))
    return markdown(("network", "MACs", "by MACs, any rank", "by MACs, ranks in blocks", "by time"), lines)


if __name__ == "__main__":
    main()
