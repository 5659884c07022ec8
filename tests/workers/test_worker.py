"""A real worker process and a real Redis: messages that it runs or refuses, and requests of users."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rq import Callback, Queue
from rq.serializers import JSONSerializer, PickleSerializer

from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.results.selection import preferred
from mergenet_core.storage import published_folder
from mergenet_core.store import keys, rq_queue, worker_registry
from tests.harness import SOLO, Lab, document, ended, result_of, wait


def test_a_whole_job_ends_in_a_verified_artifact(lab: Lab) -> None:
    job = lab.submit(document(steps=20, checkpoint_every=5), solo=False)
    job = lab.wait_for_state(job, "succeeded")
    assert [trial.state for trial in job.trials] == ["succeeded"] * 4
    assert job.artifact == "artifact"
    folder = lab.settings.job_folder(job.id)
    manifest = published_folder.verify(folder.artifact)
    assert {"model/model.safetensors", "report.json", "README.md", "job.json"} <= {file.path for file in manifest.files}
    wait(lambda: not folder.source.exists(), "all that the artifact makes superfluous to be dropped", lab.explain)
    kept = {path.name for path in folder.trial("transfer-0").iterdir()}
    assert kept == {"metrics.jsonl", "events.jsonl", "attempt-1.log"}


def test_auto_trains_every_candidate_and_delivers_the_best_on_validation(lab: Lab) -> None:
    asked = document(steps=20, checkpoint_every=10) | {
        "transfer": {"method": "auto"},
        "arms": ["transfer", "control", "sham"],
    }
    job = lab.wait_for_state(lab.submit(asked, solo=False), "succeeded")
    transfers = ("transfer-0-anchored", "transfer-0-project")
    assert {trial.id for trial in job.trials} == {"source", *transfers, "control-0", "sham-0", "finalize"}
    adapters = {name: job.trial(name).result.adapter_parameters for name in transfers}
    assert adapters["transfer-0-anchored"] > adapters["transfer-0-project"] == 0
    best = max(transfers, key=lambda name: job.trial(name).result.last["validation"])
    assert job.trial("sham-0").result.adapter_parameters == adapters[best]
    manifest = published_folder.verify(lab.settings.job_folder(job.id).artifact)
    assert manifest.about["trial"] == preferred(job.trial("control-0"), [job.trial(name) for name in transfers]).id


def test_metrics_progress_and_states_are_reported(lab: Lab) -> None:
    from mergenet_core.store import events

    job = lab.wait_for_state(lab.submit(document(steps=20, checkpoint_every=5)), "succeeded")
    losses = events.metrics(lab.store.redis, job.id, name="loss")
    assert [metric.step for metric in losses] == list(range(1, 21))
    assert losses[-1].value == pytest.approx(result_of(job).final_loss)
    assert events.progress(lab.store.redis, job.id)[SOLO].step == 20
    states = [event.data["state"] for event in lab.events(job, "trial.state")]
    assert states == ["starting", "running", "succeeded"]
    mirror = lab.settings.job_folder(job.id).trial(SOLO) / "metrics.jsonl"
    assert len(mirror.read_text().splitlines()) >= 20


@pytest.mark.parametrize(
    ("function", "arguments", "options"),
    [
        ("os.system", ["touch {witness}"], {}),
        ("subprocess.getoutput", ["touch {witness}"], {}),
        (rq_queue.ENTRY_POINT, ["touch {witness}"], {}),
        (rq_queue.ENTRY_POINT, ["a/b/1", "touch {witness}"], {}),
        (rq_queue.ENTRY_POINT, [["touch {witness}"]], {}),
        ("os.system", ["touch {witness}"], {"serializer": PickleSerializer}),
    ],
)
def test_a_message_that_names_anything_else_is_refused(
    lab: Lab, tmp_path: Path, function: str, arguments: list[Any], options: dict[str, Any]
) -> None:
    witness = tmp_path / "witness"
    arguments = [text.format(witness=witness) if isinstance(text, str) else text for text in arguments]
    raw = lab.redis_server.client(decode=False)
    serializer = options.pop("serializer", JSONSerializer)
    hostile = Queue(rq_queue.QUEUE, connection=raw, serializer=serializer).enqueue(function, *arguments, **options)
    job = lab.wait_for_state(lab.submit(document(steps=5, checkpoint_every=5)), "succeeded")
    assert not witness.exists()
    queue = Queue(rq_queue.QUEUE, connection=raw)
    wait(lambda: hostile.id not in queue.get_job_ids(), "the worker to take it and live on", lab.explain)
    assert not witness.exists()
    assert job.trial(SOLO).attempt == 1


def test_a_message_cannot_bring_a_callback(lab: Lab) -> None:
    raw = lab.redis_server.client(decode=False)
    calls = {"on_success": Callback("builtins.print"), "on_failure": Callback("builtins.print")}
    hostile = Queue(rq_queue.QUEUE, connection=raw, serializer=JSONSerializer).enqueue(
        rq_queue.ENTRY_POINT, "a/b/1", **calls
    )
    lab.wait_for_state(lab.submit(document(steps=5, checkpoint_every=5)), "succeeded")

    def read() -> str:
        return "".join(log.read_text() for log in lab.folder.glob("worker-*.log"))  # whichever took it

    wait(lambda: "there is no job a" in read(), "the message to be refused", lab.explain)
    printed = read()
    assert hostile.id not in printed


def test_a_message_that_cannot_be_read_is_skipped(lab: Lab) -> None:
    raw = lab.redis_server.client(decode=False)
    raw.hset("rq:job:broken", mapping={"data": b"\xff", "status": "no such status"})
    raw.rpush(f"rq:queue:{rq_queue.QUEUE}", "broken")
    lab.wait_for_state(lab.submit(document(steps=5, checkpoint_every=5)), "succeeded")


def test_a_second_delivery_of_a_claimed_trial_changes_nothing(lab: Lab) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    raw = lab.redis_server.client(decode=False)
    Queue(rq_queue.QUEUE, connection=raw, serializer=JSONSerializer).enqueue(
        rq_queue.ENTRY_POINT, str(AttemptRef(job.id, SOLO, 1))
    )
    lab.wait_for_state(job, "succeeded")
    other = lab.wait_for_state(lab.submit(document(steps=5, checkpoint_every=5)), "succeeded")
    assert lab.store.get(job.id).trial(SOLO).attempt == 1
    assert other.trial(SOLO).attempt == 1


def test_a_paused_job_resumes_to_the_same_loss(lab: Lab, final_loss: float) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    lab.ask(job, "pause")
    paused = lab.wait_for_state(job, "paused")
    assert paused.trial(SOLO).result is None
    assert lab.processes(job) == []
    lab.resume(job)
    job = lab.wait_for_state(job, "succeeded")
    assert job.trial(SOLO).attempt == 2
    assert job.trial(SOLO).failures == 0
    assert len(lab.events(job, "trial.resumed")) == 1
    assert result_of(job).final_loss == pytest.approx(final_loss, abs=1e-6)


def test_a_cancelled_job_keeps_a_checkpoint(lab: Lab) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    lab.ask(job, "cancel")
    job = lab.wait_for_state(job, "cancelled")
    pointer = job.trial(SOLO).checkpoint
    assert pointer is not None
    assert published_folder.verify(lab.settings.job_folder(job.id).path / pointer.path).step == pointer.step
    assert lab.processes(job) == []


def test_a_checkpoint_is_written_when_a_user_asks(lab: Lab) -> None:
    job = lab.submit(document(checkpoint_every=1500))
    wait(lambda: lab.store.get(job.id).state == "running", "the job running", lab.explain)
    lab.ask(job, "checkpoint")
    lab.wait_for_checkpoint(job)
    step = lab.events(job, "checkpoint.published")[0].data["step"]
    assert 0 <= step < 1500
    assert lab.store.get(job.id).request is None
    lab.ask(job, "checkpoint")  # at once: no look at the record falls between the one met and the one asked for
    lab.wait_for_checkpoint(job, 2)
    lab.ask(job, "cancel")
    lab.wait_for_state(job, "cancelled")


def test_nothing_is_left_of_a_job_that_is_deleted_while_a_trial_still_ends(lab: Lab) -> None:
    job = lab.submit(document(checkpoint_every=5))
    lab.wait_for_checkpoint(job)
    # as when another trial of it has failed: from then on it can be deleted
    attempt = AttemptRef(job.id, SOLO, 1)
    lab.store.update(job.id, lambda job: state_machine.fail(job, attempt, code="x", reason="x", retryable=False))
    lab.store.delete(job.id)
    folder = lab.settings.job_folder(job.id).path
    wait(lambda: not folder.exists(), "the folder of a deleted job to be removed", lab.explain)
    assert lab.processes(job) == []
    assert not folder.exists()


def test_a_loss_that_is_not_a_number_fails_once_and_commits_nothing(lab: Lab) -> None:
    poisoned = document(steps=200, optimizer="sgd", learning_rate=100.0, clip_norm=None)
    job = lab.wait_for_state(lab.submit(poisoned), "failed")
    assert job.code == "training-diverged"
    assert "step" in job.reason
    assert job.trial(SOLO).attempt == 1
    assert job.trial(SOLO).result is None


def test_a_trial_that_always_crashes_has_as_many_attempts_as_the_job_allows(lab: Lab) -> None:
    job = lab.submit(document(checkpoint_every=1500) | {"resources": {"attempts": 2}})
    for attempt in (1, 2):
        wait(lambda n=attempt: lab.store.get(job.id).trial(SOLO).attempt == n, "the attempt", lab.explain)  # type: ignore[misc]
        training, _, _ = lab.chain(job)
        training.kill()
    job = lab.wait_for_state(job, "failed")
    assert (job.code, job.trial(SOLO).attempt) == ("training-crashed", 2)
    assert "SIGKILL" in job.reason
    assert "2 attempts" in job.reason


def test_a_job_that_was_deleted_under_its_worker_leaves_no_process(lab: Lab) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    lab.store.redis.delete(keys.job(job.id))
    wait(lambda: not lab.processes(job), "the training to end", lab.explain)


def test_sigterm_drains_the_worker(lab: Lab, final_loss: float) -> None:
    lab.want_workers(2)
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    _, _, worker = lab.chain(job)
    drained = next(process for process in lab.workers if process.pid == worker.pid)
    drained.send_signal(signal.SIGTERM)
    assert drained.wait(20) == 0
    job = lab.wait_for_state(job, "succeeded")
    assert (job.trial(SOLO).attempt, job.trial(SOLO).failures) == (2, 0)
    assert len(lab.events(job, "trial.resumed")) == 1
    assert drained.pid not in [int(info.name.split("-")[-2]) for info in worker_registry.workers(lab.store.redis)]
    assert result_of(job).final_loss == pytest.approx(final_loss, abs=1e-6)


def test_a_second_sigterm_ends_a_training_that_does_not_answer(lab: Lab) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    training, horse, worker = lab.chain(job)
    training.suspend()
    worker.send_signal(signal.SIGTERM)
    asked_at = time.monotonic()
    wait(lambda: time.monotonic() > asked_at + 1.1, "more than the second in which RQ ignores a repetition", str)
    worker.send_signal(signal.SIGTERM)
    wait(lambda: all(map(ended, (worker, horse, training))), "all three to end", lab.explain, 15)
    record = lab.store.get(job.id)
    assert (record.trial(SOLO).state, record.code) == ("queued", "worker-lost")
    lab.ask(job, "cancel")


def test_the_redis_address_is_in_no_command_line(lab: Lab) -> None:
    job = lab.submit(document())
    lab.wait_for_checkpoint(job)
    for process in lab.chain(job):
        assert lab.redis_server.url not in " ".join(process.cmdline())
    lab.ask(job, "cancel")
    lab.wait_for_state(job, "cancelled")


def test_the_modules_of_a_worker_do_not_import_torch() -> None:
    check = "import sys, workers.worker, workers.supervisor, workers.trial; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
