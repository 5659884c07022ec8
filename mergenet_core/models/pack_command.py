"""`python -m mergenet_core.models.pack_command SOURCE... --rank R --out FILE`: what `mergenet pack` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from mergenet_core.errors import MergeNetError
from mergenet_core.model_files.knowledge_pack import Pack, PackDtype
from mergenet_core.model_files.read_model import weight_files
from mergenet_core.models.write_pack import write_pack

FAILED, BAD_INPUT = 1, 2


def main() -> int:
    """Write the pack and print what it holds. Returns: the exit status."""
    parser = argparse.ArgumentParser(prog="mergenet pack", description="Write a source's factors into one file.")
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=get_args(PackDtype), default="float32")
    wanted = parser.parse_args()
    try:
        pack = write_pack(wanted.sources, wanted.out, rank=wanted.rank, dtype=wanted.dtype)
    except MergeNetError as error:
        print(f"mergenet: {error.message}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"mergenet: {error.filename or wanted.out} cannot be used ({error.strerror or error})", file=sys.stderr)
        return FAILED
    print(summary(pack, wanted.sources, wanted.out))
    return 0


def summary(pack: Pack, sources: list[Path], out: Path) -> str:
    """What a pack holds, and its size compared with its sources'."""
    before = sum(path.stat().st_size for folder in sources for path in weight_files(folder))
    after = out.stat().st_size
    factored = {name: tensor for name, tensor in pack.tensors.items() if tensor.rank is not None}
    lines = [
        f"{out}: {after:,} bytes, {100 * after / before:.1f} % of the source's {before:,}",
        f"rank {pack.rank} as {pack.dtype}, {pack.checkpoints} checkpoint(s), {len(factored)} weights as factors, "
        f"{len(pack.tensors) - len(factored)} whole",
    ]
    if factored:
        least = min(factored, key=lambda name: min(factored[name].energy))
        mean = sum(tensor.energy[-1] for tensor in factored.values()) / len(factored)
        lines.append(f"energy kept: {mean:.3f} on average, least {min(factored[least].energy):.3f} in {least}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
