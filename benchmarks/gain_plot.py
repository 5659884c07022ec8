"""Draws docs/gain.svg: control, sham and transfer of every setting, seed by seed, with the interval of the gain.

    python benchmarks/gain_plot.py [--png FILE]

Every number is read from the JSON files in docs/evidence; the table of the same numbers is docs/evidence/README.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
PICTURE = EVIDENCE.parent / "gain.svg"

# Middle tones: they can be read on a white page and on a dark one.
INK = "#7b828c"
COLOURS = {"control": "#969da7", "sham": "#dd7f1f", "transfer": "#2f7fe6"}
HEIGHTS = {"control": -0.25, "sham": 0.0, "transfer": 0.25}
"""Where the arms are drawn within a setting's row."""


@dataclass(frozen=True)
class Gain:
    """An arm's mean gain over the control of the same seed and its 95 % interval, in points."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """One setting of the evidence."""

    name: str
    metric: str
    scores: dict[str, list[float]]
    """Test score of every seed in percent, by arm."""
    gains: dict[str, Gain]
    """Of the arms sham and transfer."""


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, help="also draw it into this file, on white, to look at")
    png = parser.parse_args().png
    settings = sorted(read_settings(), key=lambda setting: setting.gains["transfer"].mean, reverse=True)
    matplotlib.rcParams.update(
        {"svg.hashsalt": "gain", "svg.fonttype": "none", "font.size": 9, "text.color": INK, "axes.facecolor": "none"}
    )
    figure = draw(settings)
    figure.savefig(PICTURE, transparent=True, metadata={"Date": None})
    if png is not None:
        figure.savefig(png, dpi=120, facecolor="white")


def read_settings() -> list[Setting]:
    """Every setting that has a report in docs/evidence."""
    settings = []
    for path in sorted(EVIDENCE.glob("*.json")):
        found = json.loads(path.read_text())
        if "report" in found:
            settings.append(read_setting(found["report"]))
    return settings


def read_setting(report: dict[str, Any]) -> Setting:
    """A setting's three arms; under `auto` the transfer is the first method tried, as in docs/evidence/README.md."""
    arms = {arm["arm"]: arm for arm in report["arms"]}
    transfer = next(arm for name, arm in arms.items() if name.split(" by ")[0] == "transfer" and not arm.get("picked"))
    chosen = {"control": arms["control"], "sham": arms["sham"], "transfer": transfer}
    return Setting(
        name=report["name"],
        metric="F1" if report["metric"] == "f1" else report["metric"].replace("_", " "),
        scores={name: [100 * score for score in arm["last"]] for name, arm in chosen.items()},
        gains={name: gain(chosen[name]["difference"]) for name in ("sham", "transfer")},
    )


def gain(difference: dict[str, Any]) -> Gain:
    """A report's paired difference, in points."""
    return Gain(*(100 * difference[name] for name in ("mean", "low", "high")))


def draw(settings: list[Setting]) -> plt.Figure:
    """A row a setting: every seed's score on the left, the gain over the control on the right."""
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(9.4, 1.5 + 0.42 * len(settings)), width_ratios=[1.0, 1.0], layout="constrained"
    )
    for row, setting in enumerate(settings):
        draw_scores(left, row, setting)
        draw_gains(right, row, setting)
    left.set_ylim(len(settings) - 0.5, -0.5)
    left.set_xlim(0, 100)
    left.set_yticks(range(len(settings)), [f"{setting.name} ({setting.metric})" for setting in settings])
    left.set_title("Every seed", color=INK, fontsize=9)
    left.set_xlabel("test score, %", color=INK)
    right.axvline(0, color=COLOURS["control"], linewidth=1.4)
    right.set_title("Gain over the control of the same seed", color=INK, fontsize=9)
    right.set_xlabel("points; mean and 95 % interval", color=INK)
    for axes in (left, right):
        axes.tick_params(colors=INK, length=0)
        axes.xaxis.grid(True, color=INK, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        for row in range(1, len(settings), 2):
            axes.axhspan(row - 0.5, row + 0.5, color=INK, alpha=0.09, linewidth=0)
    labels = {
        "control": "control (no transfer)",
        "sham": "sham (transfer from shuffled weights)",
        "transfer": "transfer",
    }
    dots = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[name], markersize=6, label=label)
        for name, label in labels.items()
    ]
    figure.suptitle("Test score without a transfer, with one, and with a shuffled source", fontsize=12)
    figure.legend(handles=dots, loc="outside lower center", ncol=3, frameon=False, fontsize=9.5)
    return figure


def draw_scores(axes: Axes, row: int, setting: Setting) -> None:
    """A dot a seed."""
    for name, scores in setting.scores.items():
        heights = [row + HEIGHTS[name]] * len(scores)
        axes.plot(scores, heights, "o", color=COLOURS[name], markersize=4.5, alpha=0.75, markeredgewidth=0)


def draw_gains(axes: Axes, row: int, setting: Setting) -> None:
    """Mean and interval of the sham and of the transfer, with the transfer's mean as a number."""
    for name, gained in setting.gains.items():
        height = row + HEIGHTS[name] - 0.125
        axes.plot([gained.low, gained.high], [height, height], color=COLOURS[name], linewidth=1.8)
        axes.plot(gained.mean, height, "D", color=COLOURS[name], markersize=5, markeredgewidth=0)
    transfer = setting.gains["transfer"]
    shown = transfer.low > 0 or transfer.high < 0
    axes.annotate(
        f"{transfer.mean:+.2f}",
        (1.17, row),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="center",
        color=COLOURS["transfer"] if shown else INK,
        fontweight="bold" if shown else "normal",
    )


if __name__ == "__main__":
    main()
