"""The README's picture: what is lost against the measured speed-up, on networks of the committed results.

Every curve is `compress --speedup S --data SAMPLES --asymmetric --no-widths`, at the speed-ups that were measured.

python benchmarks/picture.py            # writes docs/images/accuracy-speed.svg
python benchmarks/picture.py --check    # exits with 1 where the picture is not that of the results
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "accuracy-speed.svg"
METHOD = "in turn"  # --asymmetric --no-widths
MOST = 5.0  # points; what loses more is not drawn
NAMES = {
    "resnet20": "ResNet-20", "resnet56": "ResNet-56", "squeezenet": "SqueezeNet 1.1",
    "crnn": "CRNN (reads text)", "ppocr_rec": "PP-OCR (reads text)", "minilm": "MiniLM (sentences)",
}  # fmt: skip
COLOURS = ("#1f6feb", "#0b3d91", "#8a63d2", "#d9480f", "#b08800", "#18794e")


def curves() -> dict[str, list[tuple[float, float]]]:
    """Speed-up measured, points lost (below 0 for a gain): by network, nothing trained."""
    found = {net: [(1.0, 0.0)] for net in NAMES}
    for file in ("without_training", "tasks"):
        for row in json.loads((RESULTS / f"{file}.json").read_text())["rows"]:
            if row["method"] == METHOD and row["net"] in NAMES and row.get("asked", "speedup").startswith("speedup"):
                found[row["net"]].append((row["measured"], row["lost"] if "lost" in row else -row["points"]))
    return {net: sorted(point for point in points if point[1] <= MOST) for net, points in found.items()}


def drawn() -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "trp-onnx", "font.size": 10, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    known = curves()
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 3.6))
        axes = figure.add_subplot()
        axes.axhspan(-1, 1, color="#18794e", alpha=0.08, linewidth=0)
        axes.text(2.03, -0.9, "within one point", color="#18794e", ha="right", va="bottom", fontsize=9)
        for colour, (net, name) in zip(COLOURS, NAMES.items(), strict=True):
            speeds, losses = zip(*known[net], strict=True)
            axes.plot(speeds, [-lost for lost in losses], "o-", color=colour, label=name, linewidth=1.4, markersize=4)
        axes.set_xlabel("times as fast, measured on the written file (one thread)")
        axes.set_ylabel("change of the task's score, points")
        axes.set_xlim(0.98, 2.05)
        axes.set_ylim(-MOST, 1)
        axes.legend(frameon=False, fontsize=9, loc="lower left")
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the picture is up to date")
    wanted = drawn()
    if parser.parse_args().check:
        # Releases of matplotlib draw the same curve with other digits: what is compared is its text and its marks.
        sys.exit(0 if marks(PICTURE.read_text(encoding="utf-8")) == marks(wanted) else "run picture.py again")
    PICTURE.write_text(wanted, encoding="utf-8")


def marks(svg: str) -> list[str]:
    """Its text, and its marks to a tenth of a point of the page."""
    places = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)
    return [*re.findall(r"<text[^>]*>([^<]*)", svg), *(f"{float(x):.1f} {float(y):.1f}" for x, y in places)]


if __name__ == "__main__":
    main()
