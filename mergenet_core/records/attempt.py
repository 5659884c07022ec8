"""Which attempt: the identity that everything written for a trial carries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttemptRef:
    """One attempt at a trial of a job. Its text form is `JOB/TRIAL/NUMBER`."""

    job_id: str
    trial_id: str
    number: int
    """Counts from 1; the fencing token: what an older attempt writes is refused."""

    def __str__(self) -> str:
        return f"{self.trial_path}/{self.number}"

    @property
    def trial_path(self) -> str:
        """`JOB/TRIAL`, with which the text form of every attempt at the same trial begins."""
        return f"{self.job_id}/{self.trial_id}"

    @classmethod
    def parse(cls, text: str) -> AttemptRef:
        """Read the text form. Raises: `ValueError` if it is anything else."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts) or not parts[2].isdecimal():
            raise ValueError(f"{text[:200]!r} is no attempt; it must be JOB/TRIAL/NUMBER")
        return cls(parts[0], parts[1], int(parts[2]))
