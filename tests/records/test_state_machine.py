"""The state machine: what a job is after any order of what workers, users and faults do to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from mergenet_core.errors import StaleAttempt, StateConflict
from mergenet_core.records import state_machine
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.records.job import TERMINAL, ArmCost, Checkpoint, Job, Trial, TrialResult
from tests.harness import job_of

RESULT = TrialResult(
    steps=1, final_loss=0.5, metric="accuracy", cost=ArmCost(step_seconds=0.1, train_seconds=0.1), parameters=1
)
CHECKPOINT = Checkpoint(step=1, path="trials/x/checkpoints/step-00000001", manifest_sha256="0", attempt=1)
TRIALS = (
    Trial(id="source", kind="source"),
    Trial(id="transfer-0", kind="arm", arm="transfer", needs=("source",)),
    Trial(id="control-0", kind="arm", arm="control"),
    Trial(id="finalize", kind="finalize", needs=("source", "transfer-0", "control-0")),
)


def submitted(max_attempts: int = 4) -> Job:
    return state_machine.submit(job_of(TRIALS, max_attempts=max_attempts))


def running(trial_id: str = "control-0") -> Job:
    job = submitted()
    return state_machine.started(state_machine.claim(job, at(job, trial_id), "w"), at(job, trial_id))


def at(job: Job, trial_id: str, number: int = 1) -> AttemptRef:
    return AttemptRef(job.id, trial_id, number)


def done(job: Job, *trial_ids: str) -> Job:
    for trial_id in trial_ids:
        attempt = job.next_attempt(job.trial(trial_id))
        job = state_machine.claim(job, attempt, "w")
        job = state_machine.commit(job, attempt, result=RESULT, artifact="artifact")
    return job


class Histories(RuleBasedStateMachine):
    """Workers claim, report and vanish, users ask and resume, in any order; old attempts keep writing too."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.job = submitted(max_attempts=3)
        self.commits: dict[str, int] = {trial.id: 0 for trial in TRIALS}
        self.ended_as: str | None = None

    def write(self, change: state_machine.Callable[[Job], Job], owner: AttemptRef | None = None) -> bool:
        """Apply a transition; whether it was accepted must be what ownership says."""
        before = self.job
        try:
            after = change(before)
        except (StaleAttempt, StateConflict):
            if owner is not None:
                trial = before.trial(owner.trial_id)
                assert trial.attempt != owner.number or trial.state not in state_machine.ACTIVE
            return False
        if owner is not None:
            assert before.trial(owner.trial_id).attempt == owner.number, "a stale attempt wrote"
        self.job = after
        return True

    @rule(target=attempts, index=st.integers(0, len(TRIALS) - 1), early=st.integers(0, 2))
    def claim(self, index: int, early: int) -> object:
        trial = self.job.trials[index]
        attempt = AttemptRef(self.job.id, trial.id, trial.attempt + early)
        if self.write(lambda job: state_machine.claim(job, attempt, "w")):
            assert early == 1
            return attempt
        return multiple()

    @rule(owner=attempts)
    def start(self, owner: AttemptRef) -> None:
        self.write(lambda job: state_machine.started(job, owner), owner)

    @rule(owner=attempts)
    def checkpoint(self, owner: AttemptRef) -> None:
        self.write(lambda job: state_machine.checkpointed(job, owner, CHECKPOINT), owner)

    @rule(owner=attempts)
    def commit(self, owner: AttemptRef) -> None:
        if self.write(lambda job: state_machine.commit(job, owner, result=RESULT, artifact="artifact"), owner):
            self.commits[owner.trial_id] += 1

    @rule(owner=consumes(attempts), retryable=st.booleans())
    def fail(self, owner: AttemptRef, retryable: bool) -> None:
        self.write(lambda job: state_machine.fail(job, owner, code="x", reason="x", retryable=retryable), owner)

    @rule(owner=attempts)
    def hand_back(self, owner: AttemptRef) -> None:
        self.write(lambda job: state_machine.hand_back(job, owner, "drained"), owner)

    @rule(what=st.sampled_from(["pause", "cancel", "checkpoint"]))
    def ask(self, what: str) -> None:
        self.write(lambda job: state_machine.request(job, what))  # type: ignore[arg-type]

    @precondition(lambda self: self.job.state in ("paused", "pausing", "failed"))
    @rule()
    def resume(self) -> None:
        if self.write(state_machine.resume):
            self.ended_as = None

    @invariant()
    def at_most_one_commit(self) -> None:
        assert max(self.commits.values()) <= 1

    @invariant()
    def a_terminal_state_stays(self) -> None:
        if self.ended_as is not None:
            assert self.job.state == self.ended_as
        if self.job.state in TERMINAL:
            self.ended_as = self.job.state

    @invariant()
    def the_job_follows_from_its_trials(self) -> None:
        states = {trial.state for trial in self.job.trials}
        active = states & state_machine.ACTIVE
        if self.job.state in TERMINAL:
            assert not active
            assert not states & {"waiting", "queued", "paused"}
            assert self.job.finished_at is not None
        if self.job.state == "paused":
            assert not active
        assert (self.job.state == "succeeded") == (states == {"succeeded"})
        assert (self.job.state == "failed") == ("failed" in states)

    @invariant()
    def nothing_starts_before_what_it_needs(self) -> None:
        for trial in self.job.trials:
            if trial.state in state_machine.ACTIVE or trial.state in ("queued", "succeeded"):
                assert all(self.job.trial(need).state == "succeeded" for need in trial.needs)

    @invariant()
    def the_artifact_is_set_by_finalize_alone(self) -> None:
        assert (self.job.artifact is not None) == (self.job.trial("finalize").state == "succeeded")


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_trials_are_queued_as_soon_as_what_they_need_is_done() -> None:
    job = submitted()
    assert [trial.state for trial in job.trials] == ["queued", "waiting", "queued", "waiting"]
    job = done(job, "source")
    assert job.trial("transfer-0").state == "queued"
    job = done(job, "control-0", "transfer-0")
    assert (job.trial("finalize").state, job.state) == ("queued", "finalizing")
    job = done(job, "finalize")
    assert (job.state, job.artifact) == ("succeeded", "artifact")


def test_a_second_delivery_is_refused() -> None:
    job = submitted()
    job = state_machine.claim(job, at(job, "control-0"), "first")
    with pytest.raises(StaleAttempt, match="not queued for 1"):
        state_machine.claim(job, at(job, "control-0"), "second")


def test_an_attempt_that_was_overtaken_commits_nothing() -> None:
    job = running()
    job = state_machine.fail(job, at(job, "control-0"), code="worker-lost", reason="gone", retryable=True)
    job = state_machine.claim(job, at(job, "control-0", 2), "other")
    with pytest.raises(StaleAttempt, match="attempt 1 of"):
        state_machine.commit(job, at(job, "control-0"), result=RESULT)
    assert state_machine.commit(job, at(job, "control-0", 2), result=RESULT).trial("control-0").result == RESULT


def test_retries_are_bounded_and_pause_longer_each_time() -> None:
    job = submitted(max_attempts=3)
    pauses = []
    for number in (1, 2, 3):
        attempt = at(job, "control-0", number)
        job = state_machine.claim(job, attempt, "w")
        job = state_machine.fail(job, attempt, code="training-crashed", reason="gone", retryable=True)
        not_before = job.trial("control-0").not_before
        if not_before is not None:
            pauses.append((not_before - job.updated_at).total_seconds())
    assert pauses == pytest.approx([1, 2], abs=0.1)
    assert (job.state, job.code, job.retryable) == ("failed", "training-crashed", True)
    assert "3 attempts" in job.reason


def test_lost_workers_are_counted_apart_and_bounded_too() -> None:
    job = submitted(max_attempts=2)
    for number in range(1, state_machine.LOSSES_MAX + 1):
        attempt = at(job, "control-0", number)
        job = state_machine.fail(
            state_machine.claim(job, attempt, "w"), attempt, code="worker-lost", reason="gone", retryable=True
        )
        if number == 3:
            assert (job.trial("control-0").losses, job.trial("control-0").failures, job.state) == (3, 0, "recovering")
    assert (job.state, job.code, job.retryable) == ("failed", "worker-lost", True)


def test_the_pause_after_a_failure_is_counted_on_the_given_clock() -> None:
    job, clock = running(), datetime(2001, 1, 1, tzinfo=UTC)
    job = state_machine.fail(job, at(job, "control-0"), code="training-hung", reason="gone", retryable=True, at=clock)
    assert job.trial("control-0").not_before == clock + timedelta(seconds=1)


def test_an_error_that_comes_again_is_not_tried_again() -> None:
    job = running()
    job = state_machine.fail(
        job, at(job, "control-0"), code="training-diverged", reason="NaN at step 3", retryable=False
    )
    assert (job.state, job.retryable, job.reason) == ("failed", False, "control-0: NaN at step 3")
    with pytest.raises(StateConflict, match="only a paused job"):
        state_machine.resume(job)


def test_a_full_disk_is_not_tried_again_but_can_be_resumed() -> None:
    job = running()
    job = state_machine.fail(job, at(job, "control-0"), code="storage-full", reason="no space", retryable=False)
    assert job.state == "failed"
    assert state_machine.resume(job).trial("control-0").state == "queued"


def test_pause_takes_back_what_waits_and_resume_gives_it_again() -> None:
    job = state_machine.request(running(), "pause")
    assert (job.state, job.trial("source").state) == ("pausing", "paused")
    job = state_machine.hand_back(job, at(job, "control-0"), "stopped")
    assert job.state == "paused"
    job = state_machine.resume(job)
    assert (job.trial("source").state, job.trial("control-0").state, job.request) == ("queued", "queued", None)


def test_a_trial_that_finishes_while_the_job_is_cancelled_keeps_its_result() -> None:
    job = state_machine.request(running(), "cancel")
    job = state_machine.commit(job, at(job, "control-0"), result=RESULT)
    assert (job.state, job.trial("control-0").state) == ("cancelled", "succeeded")


def test_a_cancel_that_comes_after_the_last_commit_is_refused() -> None:
    job = done(submitted(), "source", "control-0", "transfer-0", "finalize")
    with pytest.raises(StateConflict, match="nothing left to cancel"):
        state_machine.request(job, "cancel")


def test_a_cancel_sent_again_after_its_answer_was_lost_is_no_conflict() -> None:
    job = state_machine.request(submitted(), "cancel")
    assert job.state == "cancelled"
    assert state_machine.request(job, "cancel") == job


def test_a_checkpoint_that_was_asked_for_is_met_by_the_next_one() -> None:
    job = state_machine.request(running(), "checkpoint")
    job = state_machine.checkpointed(job, at(job, "control-0"), CHECKPOINT)
    assert (job.request, job.trial("control-0").checkpoint) == (None, CHECKPOINT)


def test_a_checkpoint_needs_something_that_trains() -> None:
    with pytest.raises(StateConflict, match="nothing is training"):
        state_machine.request(submitted(), "checkpoint")
