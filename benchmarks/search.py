"""Variations of the settings, tried for a better method; writes docs/evidence/LOG.md, failures included.

    python benchmarks/search.py [VARIATION ...] [--workers 1]

A variation is a setting of `benchmarks/evidence.py` with parts of its document replaced, at five seeds, with control
and sham. What was measured is kept in docs/evidence/LOG.json; a variation that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from evidence import EVIDENCE, HERE, ROOT, SEEDS, SETTINGS, points, run
from stack import running_service

from mergenet_core.results.report import Difference, build_report, difference
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse

VARIATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "anchored MLP": ("fashion-mlp", "the setting itself", {}),
    "projected MLP": ("fashion-mlp", "no training of the map: its start alone", {"method": "project"}),
    "anchored MLP, all steps": ("fashion-mlp", "transfers to the last step", {"stop_at": 1.0}),
    "anchored MLP, gate 0.05": ("fashion-mlp", "the gate nearly shut at the start", {"gate": 0.05}),
    "anchored MLP, rank 8": ("fashion-mlp", "an eighth of the width in place of a quarter", {"rank": 8}),
    "lpka MLP": ("fashion-mlp", "the paper's adapter, gated, through the loss", {"method": "lpka"}),
    "lpka MLP, plain": (
        "fashion-mlp",
        "the paper's plain form: no gate, no scale kept",
        {"method": "lpka", "gated": False},
    ),
    "lpka MLP, hypernetwork": (
        "fashion-mlp",
        "learning from where the target's own step led",
        {"method": "lpka", "update": "hypernetwork"},
    ),
    "lpka-raw MLP": ("fashion-mlp", "raw weights, as the released code has it", {"method": "lpka-raw"}),
    "anchored CNN": ("fashion-cnn", "learned maps in place of unit selection", {"method": "anchored"}),
    "projected CNN, no head": ("fashion-cnn", "unit selection without the classes' rows", {"include": "no-head"}),
    "lpka CNN": ("fashion-cnn", "the paper's adapter", {"method": "lpka"}),
}
"""Name → the setting, what differs, and the parts of `transfer` that are replaced."""
INTRODUCTION = """\
# What was tried

Written by `benchmarks/search.py`: variations of the settings at five seeds; points over the control of the same seed,
and over the sham, with 95 % intervals. Test accuracy of the last step's weights. The seeds are those of the evidence,
so a variation that is picked here for its numbers is no claim until other seeds have shown it."""
NOTES = """\
Of the settings themselves ([all of them](README.md)):

- `project` from a source that was itself trained from scratch on another task harms: spans of WordNet into BBC topics
  loses 35 points, its embeddings alone none that can be told apart from zero.
- A source of shuffled weights gains as well in stamps-retrieval and easy-vqa: a text tower's scale alone helps there,
  and at five seeds the transfer is not told apart from it.
- Between ResNet and MobileNetV2 only the stem carries a map, and the source of fashion-cifar knows hardly more than
  its target learns.
- Between widths of one structure, a MobileNetV2 that was pretrained on photographs loses 8 points in one of a quarter
  of its width (mobilenet-to-fashion), by learned maps 32: a quarter of each axis, picked by norms, does not carry what
  17 blocks compute in turn.
- A small BERT that attends to its own re-encoding (self-transfer) is not told apart from one that does not.
- A source that is taken state by state along its training gains less than a pretrained one, and far more than its sham.

Not tried: maps learned from activations on unlabelled inputs, which would anchor axes where no weights share one;
ranks, cycles and stops picked on validation; two-way transfers from which both models gain."""


def main() -> None:
    """Run what is not in the log yet, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variations", nargs="*", default=list(VARIATIONS), help=f"of {', '.join(VARIATIONS)}")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    wanted = parser.parse_args()
    kept = EVIDENCE / "LOG.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    with running_service(HERE / "home", workers=wanted.workers, folder=ROOT) as client:
        for name in wanted.variations:
            if name in known:
                continue
            job = run(client, document(name))
            report = build_report(job.id, job.name, job.trials)
            transfer, control, sham = (report.arm(arm) for arm in ("transfer", "control", "sham"))
            assert transfer is not None
            assert control is not None
            assert sham is not None
            ahead = difference(
                dict(zip(transfer.seeds, transfer.last, strict=True)),
                dict(zip(sham.seeds, sham.last, strict=True)),
                "sham",
            )
            known[name] = {
                "control": control.mean,
                "transfer": transfer.mean,
                "to_control": transfer.difference and transfer.difference.model_dump(),
                "to_sham": ahead.model_dump(),
                "step_ratio": transfer.step_seconds / control.step_seconds,
            }
            kept.write_text(json.dumps(known, indent=1) + "\n")
            write(known)


def document(name: str) -> JobSpec:
    """The variation's job."""
    setting, _, changes = VARIATIONS[name]
    job = parse(SETTINGS[setting].read_text())
    whole = job.model_dump(mode="json", exclude_none=True)
    whole["transfer"] = {"method": job.transfer.method} | changes
    return parse(whole | {"name": name, "arms": ["transfer", "control", "sham"], "seeds": SEEDS})


def write(known: dict[str, Any]) -> None:
    """The page: a table of all that was tried, and what is said of it."""
    lines = [INTRODUCTION, "", "| variation of | what differs | control | transfer | Δ to control | Δ to sham |"]
    lines.append("|---" * 6 + "|")
    for name, (setting, what, _) in VARIATIONS.items():
        if name in known:
            one = known[name]
            gains = [points(Difference.model_validate(one[part])) for part in ("to_control", "to_sham")]
            cells = [f"{name} ([{setting}]({setting}.md))", what, f"{100 * one['control']:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{100 * one['transfer']:.2f}", *gains]) + " |")
    (EVIDENCE / "LOG.md").write_text("\n".join([*lines, "", NOTES]) + "\n")


if __name__ == "__main__":
    main()
