"""Try variations of the settings in search of a better method; write docs/evidence/LOG.md, failures included.

    python benchmarks/search.py [VARIATION ...] [--workers 1]

A variation is a setting of `benchmarks/evidence.py` with parts of its document replaced, at five seeds, with control
and sham. The measurements are in docs/evidence/LOG.json; a variation that it has is not run again.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from evidence import HERE, SEEDS, SETTINGS, run
from measuring import EVIDENCE, ROOT, write_evidence
from stack import running_service

from mergenet_core.results.comparisons import Difference, points
from mergenet_core.results.report import build_report
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import parse
from service.client import Client

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
"""Name → the setting, a description of the change, and the keys of `transfer` that replace the setting's."""
INTRODUCTION = """\
# What was tried

Written by `benchmarks/search.py`: variations of the settings at five seeds; points over the control of the same seed,
and over the sham, with 95 % intervals. Test accuracy of the last step's weights. The seeds are those of the evidence,
so a variation that is chosen for its numbers here is no claim until other seeds have shown it."""
NOTES = """\
Of the settings themselves ([all of them](README.md)):

- `project` from a source that was itself trained from scratch on another task harms: from spans of WordNet to BBC
  topics the target loses 35 points; with the embeddings alone no difference to zero is shown.
- In stamps-retrieval and easy-vqa a source with shuffled weights gains too: the scale of a text tower alone helps
  there, and at five seeds no difference between transfer and sham is shown.
- Between ResNet and MobileNetV2 only the stem carries a map, and the source of fashion-cifar is hardly better than its
  target.
- Between widths of one architecture, a MobileNetV2 pretrained on photographs costs a target of a quarter of its width
  8 points (mobilenet-to-fashion), and with learned maps 32: a quarter of each axis, chosen by norms, does not preserve
  what 17 blocks compute in sequence.
- Between a small BERT that attends to its own re-encoding (self-transfer) and one that does not, no difference is
  shown.
- A source that is taken state by state along its training gains less than a pretrained one, and far more than its sham.

## Method `fit`

Choices that were made in pilots, one or two seeds each, which no page uses. Between CNNs:

- Where the ends of both models' stages pass a ReLU, source channels chosen by their variance are better than principal
  components with an offset into the ReLU's linear part.
- One basis and one scale for a whole residual stream are needed: with a new basis at each block, half of what a block
  has to add is left unexplained. Whitening hurts.
- A ridge of 1e-3 of the mean diagonal; with 48 images 1e-2 is better. Restoring the variance that least squares shrinks
  makes no difference.

Between transformers:

- A map of the stream from the activations of all boundaries is better than one from the embeddings or from the last
  layer alone. More texts help more than any other choice: 300 texts fit themselves and not the others.
- Where a norm follows, the source's gain belongs before the map.
- Values and outputs solved together, heads chosen greedily, and units by matching pursuit give little or nothing over
  heads and units by activation energy.
- On BBC topics the fit reaches what `project` reaches, and no more: there it is the embeddings that matter most.

Training on the labels alone destroys a solved start; the stage loss keeps it.

Not tried: ranks, cycles and stops chosen on validation; two-way transfers that help both models; a fit between other
tokenizers, and from or into models of two towers."""


def main() -> None:
    """Run the variations that are not in the log yet, and add them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variations", nargs="*", default=list(VARIATIONS), help=f"of {', '.join(VARIATIONS)}")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    options = parser.parse_args()
    log = EVIDENCE / "LOG.json"
    known: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {}
    with (
        running_service(HERE / "home", workers=options.workers, folder=ROOT) as profile,
        Client(profile.url, profile.api_key) as client,
    ):
        for name in options.variations:
            if name in known:
                continue
            job = run(client, document(name))
            report = build_report(job.id, job.name, job.trials)
            transfer, control = (report.arm(arm) for arm in ("transfer", "control"))
            to_sham = next(one.difference for one in report.comparisons if one.difference.to == "sham")
            assert transfer is not None
            assert control is not None
            known[name] = {
                "control": control.mean,
                "transfer": transfer.mean,
                "to_control": transfer.difference and transfer.difference.model_dump(),
                "to_sham": to_sham.model_dump(),
                "step_ratio": transfer.step_seconds / control.step_seconds,
            }
            write_evidence("LOG", known, page(known))


def document(name: str) -> JobSpec:
    """The variation's job."""
    setting, _, changes = VARIATIONS[name]
    job = parse(SETTINGS[setting].read_text())
    whole = job.model_dump(mode="json", exclude_none=True)
    whole["transfer"] = {"method": job.transfer.method} | changes
    return parse(whole | {"name": name, "arms": ["transfer", "control", "sham"], "seeds": SEEDS})


def page(known: dict[str, Any]) -> str:
    """A table of all variations, and the conclusions."""
    lines = [INTRODUCTION, "", "| variation of | what differs | control | transfer | Δ to control | Δ to sham |"]
    lines.append("|---" * 6 + "|")
    for name, (setting, change, _) in VARIATIONS.items():
        if name in known:
            measured = known[name]
            gains = [points(Difference.model_validate(measured[key])) for key in ("to_control", "to_sham")]
            cells = [f"{name} ([{setting}]({setting}.md))", change, f"{100 * measured['control']:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{100 * measured['transfer']:.2f}", *gains]) + " |")
    return "\n".join([*lines, "", NOTES]) + "\n"


if __name__ == "__main__":
    main()
