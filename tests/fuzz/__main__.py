"""A campaign of mutated files against every command: `python -m tests.fuzz --tries 500 --seed 7 --slice 3/20`.

Each try is named by the seed and its number: `python -m tests.fuzz --again 7:123` runs that one, `--keep DIR` leaves
its files and what it printed there. `--out` takes JSON lines; the summary groups failures by the promise broken.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

# Threads do not survive a fork: there are none before it.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from tests.fuzz.judge import Verdict, judge
from tests.fuzz.material import imported, material

GOOD = ("fine", "not made")
"""The second: mutations met that no file can hold together."""


def main() -> int:
    """Run the tries of a slice; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--tries", type=int, default=500, help="of the whole campaign (500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slice", default="1/1", metavar="I/N", help="only the I-th of N parts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append JSON lines there")
    parser.add_argument("--again", nargs="*", metavar="SEED:NUMBER", help="only these tries")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all files there")
    given = parser.parse_args()
    part, parts = (int(word) for word in given.slice.split("/"))
    numbers = given.again or [f"{given.seed}:{i}" for i in range(part - 1, given.tries, parts)]
    imported()
    folder = Path(tempfile.mkdtemp(prefix="trp-fuzz-"))
    verdicts: list[Verdict] = []
    began = time.monotonic()
    try:
        made = material(folder / "material")
        for i, number in enumerate(numbers):
            place = given.keep / number.replace(":", "-") if given.keep else folder / "try"
            verdict = judge(number, place, made, keep=given.keep is not None)
            verdicts.append(verdict)
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps(asdict(verdict)) + "\n")
            if given.again or verdict.kind not in GOOD:
                print(f"{number} {verdict.kind}: {verdict.detail}\n    {verdict.command}\n    {verdict.mutation}"
                      f"\n    exit code {verdict.code}, {verdict.seconds} s: {verdict.said}", flush=True)  # fmt: skip
            elif i % 100 == 99:
                print(f"{i + 1} of {len(numbers)}, {(i + 1) / (time.monotonic() - began):.1f} a second", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _summary(verdicts, time.monotonic() - began)
    return int(any(verdict.kind not in GOOD for verdict in verdicts))


def _summary(verdicts: list[Verdict], seconds: float) -> None:
    codes = collections.Counter(verdict.code for verdict in verdicts)
    kinds = collections.Counter(verdict.kind for verdict in verdicts)
    slow = sorted(verdicts, key=lambda verdict: -verdict.seconds)[:3]
    print(f"{len(verdicts)} tries in {seconds:.0f} s; exit codes {dict(sorted(codes.items()))}; {dict(kinds)}")
    print("slowest:", ", ".join(f"{verdict.number} {verdict.seconds} s" for verdict in slow))
    groups = collections.defaultdict(list)
    for verdict in verdicts:
        if verdict.kind not in GOOD:
            detail = verdict.detail[:120] if verdict.kind in ("traceback", "signal") else ""
            groups[verdict.kind, detail].append(verdict)
    for (kind, detail), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"{len(members):5} {kind}: {detail}: {', '.join(verdict.number for verdict in members[:5])}")


if __name__ == "__main__":
    sys.exit(main())
