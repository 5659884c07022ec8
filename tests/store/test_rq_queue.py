"""Messages: one per attempt, naming the entry point and the attempt alone."""

from __future__ import annotations

from redis import Redis
from rq import Queue
from rq.job import Job as Message
from rq.serializers import JSONSerializer

from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.store import rq_queue
from mergenet_core.store.jobs import Store
from tests.store.test_jobs import create


def waiting(raw: Redis) -> list[str]:
    return [str(message) for message in Queue(rq_queue.QUEUE, connection=raw).get_job_ids()]


def test_a_message_holds_the_entry_point_and_the_attempt(redis: Redis, raw: Redis) -> None:
    job = create(Store(redis))
    rq_queue.enqueue(raw, job)
    message = Message.fetch(f"{job.id}_control-0_1", connection=raw, serializer=JSONSerializer)
    assert message.data == f'["workers.supervisor.run", null, ["{job.id}/control-0/1"], {{}}]'.encode()
    assert message.timeout == -1


def test_a_paused_job_gets_its_message_again_on_resume(redis: Redis, raw: Redis) -> None:
    store = Store(redis)
    job = create(store)
    rq_queue.enqueue(raw, job)
    store.update(job.id, lambda job: state_machine.request(job, "pause"))
    Queue(rq_queue.QUEUE, connection=raw).empty()  # a worker took it meanwhile, and the record refused it
    rq_queue.enqueue(raw, store.update(job.id, state_machine.resume))
    assert waiting(raw) == [f"{job.id}_control-0_1"]


def test_trials_that_need_cuda_have_queues_of_their_own() -> None:
    names = [rq_queue.queue_of_devices(count, cuda=cuda) for count in (1, 2) for cuda in (False, True)]
    assert names == ["mergenet", "mergenet-cuda", "mergenet-2", "mergenet-cuda-2"]


def test_arm_names_make_valid_message_names() -> None:
    assert rq_queue.message_id(AttemptRef("j", "transfer+distill-0", 2)) == "j_transfer-and-distill-0_2"
