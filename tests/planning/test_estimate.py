"""What a process needs by strategy, and which strategy `auto` is."""

from dataclasses import replace

import pytest

from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.errors import TooLarge
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.pairing.pair import pair
from mergenet_core.planning.estimate import estimate
from mergenet_core.planning.memory import CONTEXT_BYTES
from mergenet_core.planning.placement import check_machine, choose_strategy
from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.spec.job import TransferSpec
from mergenet_core.spec.parse import parse

BASE = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
TARGET = ModelInfo(BASE, shapes_from_config(BASE))
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def job(devices=2, train=None, **resources):
    return parse(
        {
            "name": "a job",
            "source": {"model": {"path": "source"}},
            "target": {
                "model": {"config": BASE},
                "task": "text-classification",
                "data": {"train": "train.jsonl", "test": "test.jsonl", "max_length": 64},
            },
            "train": {"steps": 10, "batch_size": 8} | (train or {}),
            "resources": {"devices": devices} | resources,
        }
    )


def estimated(spec):
    return estimate(spec, TARGET, TARGET, [], 2)


def test_of_the_candidates_the_one_that_needs_most_counts():
    spec = job()
    known = replace(TARGET, vocabulary=Vocabulary("words"))
    pairings = {name: pair(known, known, TransferSpec(method=name)) for name in ("project", "anchored")}
    found = {name: estimate(spec, TARGET, TARGET, [pairing], 2) for name, pairing in pairings.items()}
    both = estimate(spec, TARGET, TARGET, list(pairings.values()), 2)
    assert found["project"].transfer_numbers == 0 < found["anchored"].transfer_numbers
    assert both == found["anchored"]
    assert both.under("ddp").memory_bytes > found["project"].under("ddp").memory_bytes


def test_an_untrained_source_is_held_as_a_whole():
    plain, sham = job(), job().model_copy(update={"arms": ["transfer", "control", "sham-untrained"]})
    more = estimated(sham).under("ddp").device_bytes - estimated(plain).under("ddp").device_bytes
    assert more == 4 * estimated(plain).source_parameters


def gpu(memory_bytes, devices=2):
    described = {"name": "w", "host": "h", "state": "idle", "device": "cuda: some ×2"}
    slots = tuple(Device(id=str(number), name="cuda: some", memory_bytes=memory_bytes) for number in range(devices))
    return WorkerInfo(**described, devices=slots, memory_bytes=memory_bytes, cpus=2, seen_at=now())


def with_room_for(strategy, spec):
    return gpu(estimated(spec).under(strategy).device_bytes + CONTEXT_BYTES)


def test_auto_is_one_process_alone_or_the_fastest_that_fits():
    spec = job()
    assert choose_strategy(estimated(job(devices=1)), job(devices=1), [gpu(10**6)]) == "single"
    for name in ("ddp", "zero2", "fsdp2"):
        assert choose_strategy(estimated(spec), spec, [with_room_for(name, spec)]) == name


def test_the_smallest_device_that_may_get_a_trial_decides():
    spec = job()
    roomy, narrow = with_room_for("ddp", spec), with_room_for("fsdp2", spec)
    assert choose_strategy(estimated(spec), spec, [roomy, narrow]) == "fsdp2"
    alone = narrow.model_copy(update={"devices": narrow.devices[:1]})  # it has too few devices to be asked
    assert choose_strategy(estimated(spec), spec, [roomy, alone]) == "ddp"


def test_without_a_machine_auto_is_what_needs_least():
    spec = job()
    assert choose_strategy(estimated(spec), spec, []) == "fsdp2"
    assert choose_strategy(estimated(spec), job(offload="optimizer"), []) == "zero3"


def test_deepspeeds_settings_ask_for_zero():
    spec = job(offload="optimizer")
    assert choose_strategy(estimated(spec), spec, [gpu(10**12)]) == "zero2"
    spec = job(offload="parameters")
    assert choose_strategy(estimated(spec), spec, [gpu(10**12)]) == "zero3"


def test_what_is_cut_shrinks_with_the_processes():
    found, more = estimated(job()), estimated(job(devices=4))
    for name in STRATEGIES:
        assert more.under(name).memory_bytes <= found.under(name).memory_bytes
    whole = 4 * found.target_parameters
    assert found.under("ddp").weights == whole
    assert found.under("fsdp2").weights == pytest.approx(whole / 2, rel=1e-6)
    assert found.under("zero2").gradients == pytest.approx(whole / 2, rel=1e-6)
    assert found.under("fsdp2").device_bytes < found.under("ddp").device_bytes


def test_activations_follow_the_batch_and_its_parts():
    found = estimated(job()).under("ddp").activations
    assert estimated(job(train={"batch_size": 16})).under("ddp").activations == pytest.approx(2 * found, rel=1e-6)
    halved = estimated(job(train={"micro_batches": 2})).under("ddp").activations
    assert halved == pytest.approx(found / 2, rel=1e-6)
    assert estimated(job(activation_checkpointing=True)).under("ddp").activations < found / 4


def test_offloading_moves_the_optimizer_to_the_host():
    here, there = (estimated(job(**more)).under("zero2") for more in ({}, {"offload": "optimizer"}))
    assert there.device_bytes == here.device_bytes - here.moments
    assert there.host_bytes == here.host_bytes + here.moments


def test_a_refusal_names_the_strategies_that_would_fit(tmp_path):
    spec = job(strategy="ddp")
    worker = with_room_for("fsdp2", spec)
    with pytest.raises(TooLarge, match=r"under ddp; .* resources\.strategy fsdp2"):
        check_machine(estimated(spec), "ddp", spec, tmp_path, [worker])
    check_machine(estimated(spec), "fsdp2", spec, tmp_path, [worker])


def test_processes_on_a_cpu_share_its_memory(tmp_path):
    spec = job(device="cpu", strategy="ddp")
    needed = estimated(spec).under("ddp").memory_bytes
    check_machine(estimated(spec), "ddp", spec, tmp_path, [gpu(2 * needed)])
    with pytest.raises(TooLarge, match="2 × "):
        check_machine(estimated(spec), "ddp", spec, tmp_path, [gpu(2 * needed - 1)])


def test_the_released_codes_adapter_gets_whole_weights():
    spec = job()
    raw = spec.model_copy(update={"transfer": spec.transfer.model_copy(update={"method": "lpka-raw"})})
    assert choose_strategy(estimated(raw), raw, [gpu(10**6)]) == "zero2"
    assert choose_strategy(estimated(raw), raw, []) == "zero2"
