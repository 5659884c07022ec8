"""From a job document to its trials, its pairing and an estimate, before anything is downloaded, queued or trained.

Runs where the API runs: it reads configs, safetensors headers and the first bytes of data files, never weights.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergenet_core.architectures.check_config import check_config
from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.architectures.two_tower_config import image_config, tower_configs, with_defaults
from mergenet_core.errors import (
    DataRefused,
    FieldError,
    MergeNetError,
    ModelRefused,
    PathRefused,
    SpecInvalid,
)
from mergenet_core.model_files.knowledge_pack import read_pack
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.model_files.read_model import inspect_model, read_vocabulary
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.pairing.rank import limit_rank
from mergenet_core.planning.auto_methods import ways
from mergenet_core.planning.data_files import CIFAR_LABELS, CIFAR_RECORD, annotations_beside, images_beside
from mergenet_core.planning.estimate import (
    Estimate,
    check_devices,
    check_machine,
    choose,
    estimate,
    required_bytes,
    suitable,
)
from mergenet_core.planning.memory import Strategy
from mergenet_core.records.job import Trial, Way
from mergenet_core.records.record import Record
from mergenet_core.records.workers import WorkerInfo
from mergenet_core.spec.deepspeed import check_user_config
from mergenet_core.spec.job import DataSpec, JobSpec, ModelSpec, TaskName
from mergenet_core.spec.task_info import TASKS
from mergenet_core.storage.paths import Roots

_LAYERS_MAX, _SIZE_MAX = 1_000, 10_000_000
_FIELD = re.compile(r"(?:source|target|transfer|train|resources|retention)(?:\.\w+)+")
_JSON_HEAD = 1_000_000
"""Characters at a JSON file's beginning in which its columns must be named."""
_FILE_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
_PICKLES = ("", ".pkl", ".pickle", ".pt", ".pth")


class Plan(Record):
    """What will be done for a job, and what could be told in advance."""

    trials: tuple[Trial, ...]
    pairing: Pairing | None
    """Null where a model's shapes are only known once a worker has loaded it."""
    estimate: Estimate
    strategy: Strategy
    """How each trial's model is spread; for `auto` what was chosen by the estimate."""
    notes: tuple[str, ...] = ()


def make_plan(spec: JobSpec, roots: Roots, home: Path, workers: Sequence[WorkerInfo]) -> Plan:
    """Check everything that can be checked without loading a model, and lay out the trials.

    Raises: `PathRefused`, `ModelRefused`, `DataRefused`, `PairingRefused`, `SpecInvalid`, `TooLarge`, each naming the
    field and what to change.
    """
    with _pointing():
        return _plan(spec, roots, home, workers)


def _plan(spec: JobSpec, roots: Roots, home: Path, workers: Sequence[WorkerInfo]) -> Plan:
    notes: list[str] = []
    _check_data(spec.target.data, spec.target.task, roots, "target.data")
    if spec.source.data is not None:
        _check_data(spec.source.data, spec.source_task, roots, "source.data")
    task, data = spec.target.task, spec.target.data
    learns, learned = spec.source.train is not None, spec.source_task
    source = _facts(spec.source.model, learned, spec.source.data or data, roots, "source.model", notes, trained=learns)
    target = _facts(spec.target.model, task, data, roots, "target.model", notes, donor=spec.source.model)
    _check_distillation(spec, source)
    pairing = None
    pairings: list[Pairing] = []
    tried: tuple[Way, ...] = (Way(method="auto", include=spec.transfer.include),)
    if source is not None and target is not None:
        source, target = _with_labels(spec, source, target)
        pairing, rank = pair(source, target, spec.transfer), _source_rank(spec, roots)
        _check_states(spec, roots)
        found_ways = ways(source, target, spec.transfer, pairing) if spec.transfer.method == "auto" else {}
        tried = tuple(found_ways) or tried
        pairings = [limit_rank(one, rank, spec.transfer.rank) for one in found_ways.values() or (pairing,)]
        pairing = pairings[0]
    laid_out = trials(spec, tried)
    check_user_config(spec.resources.deepspeed)
    if spec.resources.nodes == 1:
        check_devices(spec.resources.devices, workers)
    found = estimate(spec, source, target, pairings, sum(trial.kind == "arm" for trial in laid_out))
    strategy = choose(found, spec, workers)
    needed = found.under(strategy)
    told = None if needed is None else required_bytes(needed, spec.resources, workers)
    found = found.model_copy(update={"memory_bytes": told})
    check_machine(found, strategy, spec, home, workers, notes)
    if spec.resources.strategy == "auto" and strategy != "single":
        unknown = needed is None or not suitable(spec.resources, workers)
        because = "no machine or no shape is known, and it needs least" if unknown else "by the estimate"
        notes.append(f"resources.strategy auto is {strategy}: {because}")
    brief = pairing and pairing.brief()
    return Plan(trials=laid_out, pairing=brief, estimate=found, strategy=strategy, notes=tuple(notes))


@contextlib.contextmanager
def _pointing() -> Iterator[None]:
    """Give an error whose sentence begins with a field the pointer to it."""
    try:
        yield
    except MergeNetError as error:
        if not error.errors and (field := _FIELD.match(error.message)):
            error.errors = (FieldError("/" + field[0].replace(".", "/"), error.message),)
        raise


def trials(spec: JobSpec, tried: tuple[Way, ...] = ()) -> tuple[Trial, ...]:
    """The source's own training if it has one, then every arm at every seed, then the report and the artifact.

    With method `auto` the arm `transfer` is a trial for each way in `tried`; arms that go the best way wait for those.
    """
    first = (Trial(id="source", kind="source", seed=spec.source.seed),) if spec.source.trained_first else ()
    needs = tuple(trial.id for trial in first)
    arms: list[Trial] = []
    for seed in spec.seeds:
        trying = tried if spec.transfer.method == "auto" and "transfer" in spec.arms else ()
        by_way = [
            Trial(id=f"transfer-{seed}-{way.name}", kind="arm", arm="transfer", seed=seed, way=way, needs=needs)
            for way in trying
        ]
        for arm in spec.arms:
            if arm == "transfer" and by_way:
                arms += by_way
                continue
            waits = () if arm == "control" else needs
            if arm in ("sham", "transfer+distill"):
                waits += tuple(trial.id for trial in by_way)
            arms.append(Trial(id=f"{arm}-{seed}", kind="arm", arm=arm, seed=seed, needs=waits))
    last = Trial(id="finalize", kind="finalize", needs=tuple(trial.id for trial in (*first, *arms)))
    return (*first, *arms, last)


def _facts(
    model: ModelSpec,
    task: TaskName,
    data: DataSpec,
    roots: Roots,
    field: str,
    notes: list[str],
    *,
    trained: bool = True,
    donor: ModelSpec | None = None,
) -> ModelInfo | None:
    """What is known of a model now; `donor` is the model whose tokenizer one from scratch takes over."""
    tokenizer = roots.model(model.tokenizer, f"{field}.tokenizer") if model.tokenizer else None
    if model.hub is not None:
        if not roots.hub:
            raise PathRefused(
                f"{field}.hub: this server does not open the hub; give a path below its model roots, "
                "or ask the operator for MERGENET_HUB=true"
            )
        notes.append(f"{field} is on the hub: a worker checks and pairs it after the download")
        return None
    if model.path is not None or model.pack is not None:
        folder = _saved(model, roots, field)
        # a source is read as an encoder or as a classifier; only what is trained must be able to learn the task
        with _naming(f"{field}.{'path' if model.pack is None else 'pack'}"):
            found = inspect_model(folder, task if trained else None)
        return found if tokenizer is None else replace(found, vocabulary=_vocabulary(tokenizer, field))
    config = dict(model.config or {})
    check_config(config, task, where=f"{field}.config")
    if TASKS[task].reads_images:
        config = with_defaults(config, {}, {"image_size": data.image_size})
        size = image_config(config)["image_size"]
        if size != data.image_size:
            raise SpecInvalid(f"{field}.config.image_size is {size}, the data's is {data.image_size}; make them equal")
    if tokenizer is None and donor is not None and donor.tokenizer is not None:
        tokenizer = roots.model(donor.tokenizer, f"{field}.tokenizer")
    elif tokenizer is None and donor is not None and (donor.path or donor.pack):
        tokenizer = _saved(donor, roots, "source.model")
    if TASKS[task].reads_text:
        if tokenizer is None or (vocabulary := _vocabulary(tokenizer, field)) is None:
            raise SpecInvalid(f"{field}.tokenizer: a text model from scratch needs a tokenizer; name a folder with one")
        config = with_defaults(config, {"vocab_size": vocabulary.size}, {})
    try:
        _check_sizes(config, f"{field}.config")
        shapes = shapes_from_config(config, task)
        sides = [side for shape in (shapes or {}).values() for side in shape]
        wrong: list[object] = [side for side in sides if not isinstance(side, int) or side < 1]
    except (TypeError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        raise SpecInvalid(f"{field}.config: a size is not a positive whole number ({wrong[0]}); correct the config")
    if shapes is None:
        notes.append(f"{field}: shapes of a {config['model_type']} from scratch are known once a worker has built it")
        return None
    return ModelInfo(config, shapes, _vocabulary(tokenizer, field) if tokenizer else None)


def _saved(model: ModelSpec, roots: Roots, field: str) -> Path:
    """The folder of a saved model, or the file that is its pack."""
    if model.pack is not None:
        return roots.pack(model.pack, f"{field}.pack")
    return roots.model(model.path or "", f"{field}.path")


def _check_states(spec: JobSpec, roots: Roots) -> None:
    if spec.source.mode == "trajectory" and spec.source.model.pack is not None:
        pack = read_pack(_saved(spec.source.model, roots, "source.model"))
        if pack.checkpoints < 2:
            raise SpecInvalid(
                "source.model.pack holds one checkpoint, which is no trajectory: give mergenet pack several folders, "
                "the oldest first, or take source.mode frozen"
            )


def _source_rank(spec: JobSpec, roots: Roots) -> int | None:
    """The rank that the source is told at; None where it is told whole."""
    if spec.source.model.pack is None:
        return spec.source.rank
    return read_pack(_saved(spec.source.model, roots, "source.model")).rank


def _vocabulary(tokenizer: Path, field: str) -> Vocabulary | None:
    with _naming(f"{field}.tokenizer"):
        return read_vocabulary(tokenizer)


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
    """A folder's fault is told with the field that names the folder."""
    try:
        yield
    except ModelRefused as error:
        raise ModelRefused(f"{field}: {error.message}") from None


def _check_sizes(config: Mapping[str, Any], field: str) -> None:
    """A few digits too many would keep the server counting."""
    for key in tower_configs(config):
        _check_sizes(config.get(key) or {}, f"{field}.{key}")
    for name, value in config.items():
        most = _LAYERS_MAX if "layer" in name else _SIZE_MAX
        if isinstance(value, int) and value > most:
            raise SpecInvalid(f"{field}.{name}: {value} is more than is ever built here, {most}; take a smaller one")
        if isinstance(value, (list, dict)) and len(value) > _LAYERS_MAX * 100:
            raise SpecInvalid(f"{field}.{name} has {len(value)} entries; {_LAYERS_MAX * 100} is the most")


def _with_labels(spec: JobSpec, source: ModelInfo, target: ModelInfo) -> tuple[ModelInfo, ModelInfo]:
    """Label spaces as far as they are known before data is read: a source trained on the same classes shares them."""
    if spec.source.data is not None and _same_labels(spec, spec.source.data):
        shared = ("as in the data",)
        return (
            ModelInfo(source.config, source.shapes, source.vocabulary, source.labels or shared),
            ModelInfo(target.config, target.shapes, target.vocabulary, target.labels or shared),
        )
    return source, target


def _same_labels(spec: JobSpec, learned: DataSpec) -> bool:
    if spec.source_task != spec.target.task:
        return False
    task = TASKS[spec.target.task]
    return learned.label == spec.target.data.label if task.one_label else bool(task.fixed_labels)


def _check_distillation(spec: JobSpec, source: ModelInfo | None) -> None:
    distilling = [arm for arm in spec.arms if "distill" in arm]
    if distilling and not TASKS[spec.target.task].one_label:
        able = ", ".join(name for name, task in TASKS.items() if task.one_label)
        raise SpecInvalid(
            f"arms: {distilling[0]} needs a task with one label per example ({able}), the target "
            f"learns {spec.target.task}; leave {' and '.join(distilling)} out",
            errors=(FieldError("/arms", f"{distilling[0]} does not go with {spec.target.task}; leave it out"),),
        )
    if not distilling or source is None:
        return
    teacher = spec.transfer.distill and spec.transfer.distill.teacher
    headless = source.labels is None if spec.source.train is None else spec.source_task != spec.target.task
    if teacher is None and headless:
        raise SpecInvalid(
            "transfer.distill.teacher is missing: the source has no head for the target's labels, so it cannot teach "
            "them; give teacher (steps, learning_rate, …) to fine-tune a copy first, or leave the distill arms out"
        )


def _check_data(data: DataSpec, task: TaskName, roots: Roots, field: str) -> None:
    if data.hub is not None:
        if not roots.hub:
            raise PathRefused(
                f"{field}.hub: this server does not open the hub; give files below its data roots, "
                "or ask the operator for MERGENET_HUB=true"
            )
        return
    for split in ("train", "test", "validation"):
        name = getattr(data, split)
        if name is not None:
            path, where = roots.dataset(name, f"{field}.{split}"), f"{field}.{split}"
            if _check_split(path, TASKS[task].columns(data), where, task):
                _check_beside(path, data, task, roots, where)


def _check_beside(path: Path, data: DataSpec, task: TaskName, roots: Roots, field: str) -> None:
    """The other files of a data set that comes in several."""
    if TASKS[task].separate_annotations:
        annotations_beside(path, field)
    if TASKS[task].names_image_files:
        images_beside(path, data, roots, field)


def _check_split(path: Path, wanted: tuple[str, ...], field: str, task: TaskName) -> bool:
    """What the first bytes tell: is there anything, in a format that is read, with the columns that are named.

    Returns: whether it is in the task's own data set's form, which needs no columns.
    """
    if path.is_dir():
        if not any(path.iterdir()):
            raise DataRefused(f"{field}: the folder {path.name} is empty")
        return False
    cifar = path.suffix == ".bin" and TASKS[task].reads_cifar
    if path.suffix in _PICKLES:
        raise DataRefused(f"{field}: {path.name} may be a pickle and is not opened; CIFAR-100 has a binary version")
    if path.suffix not in _FILE_SUFFIXES and not cifar:
        raise DataRefused(f"{field}: {path.name} is not read; give {', '.join(_FILE_SUFFIXES)} or a folder")
    if path.stat().st_size == 0:
        raise DataRefused(f"{field}: {path.name} is empty")
    if cifar and path.stat().st_size % CIFAR_RECORD:
        raise DataRefused(
            f"{field}: {path.name} is {path.stat().st_size:,} bytes, no multiple of a record's {CIFAR_RECORD:,} in "
            "CIFAR-100's binary version; download it again"
        )
    own = False
    try:
        # spreadsheets begin their CSV with a byte order mark, which is no part of the first column's name
        with path.open(encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8", newline="") as file:
            if path.suffix == ".csv":
                found = next(csv.reader(file), [])
            elif path.suffix == ".jsonl":
                found = list(json.loads(file.readline(10_000_000)))
            elif cifar:
                found = [wanted[0], *CIFAR_LABELS]
            elif path.suffix == ".json":
                head = file.read(_JSON_HEAD)
                found, own = TASKS[task].columns_in_json(head, wanted), TASKS[task].is_dataset_json(head)
            else:
                return False
    except (ValueError, TypeError, RecursionError, csv.Error):
        raise DataRefused(f"{field}: the first line of {path.name} is not {path.suffix[1:].upper()}") from None
    for column in wanted:
        if column not in found:
            raise DataRefused(
                f"{field}: {path.name} has no column {column!r}; it has {', '.join(map(str, found)) or 'none'}. "
                f"Name the right ones in {field.rsplit('.', 1)[0]}"
            )
    return own
