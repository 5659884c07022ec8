"""The identity of an attempt, which queue messages, lease keys and command lines carry as text."""

from __future__ import annotations

import pytest

from mergenet_core.records.attempt import AttemptRef


def test_the_text_form_is_read_back() -> None:
    attempt = AttemptRef("01J", "transfer+distill-0", 12)
    assert str(attempt) == "01J/transfer+distill-0/12"
    assert AttemptRef.parse(str(attempt)) == attempt


@pytest.mark.parametrize(
    "text", ["", "job", "job/trial", "job/trial/x", "job//1", "/trial/1", "job/trial/1/2", "j/t/-1"]
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be JOB/TRIAL/NUMBER"):
        AttemptRef.parse(text)
