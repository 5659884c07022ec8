"""What the operator sets, the same for the API and the workers: environment variables that begin with MERGENET_."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from mergenet_core.storage.paths import JobFolder, Roots, job_folder


class Settings(BaseSettings):
    """Where everything lies and what is allowed."""

    model_config = SettingsConfigDict(
        env_prefix="MERGENET_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    home: Path = Path("mergenet-home")
    """Folder of jobs, checkpoints and artifacts; API and workers must share it."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """Redis, password included; it must append to disk (appendonly yes)."""
    model_roots: Annotated[tuple[Path, ...], NoDecode] = (Path("models"),)
    """Folders that jobs may name models in, separated by `:`."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = (Path("data"),)
    """Folders that jobs may name data in, separated by `:`."""
    hub: bool = False
    """Let jobs name models and datasets of the Hugging Face hub, pinned to a commit."""
    lease_seconds: Annotated[float, Field(ge=0.5, le=50)] = 15.0
    """How long a worker may be silent before its trial is given to another; RQ's own patience is 60 s and more."""
    grace_seconds: Annotated[float, Field(ge=1)] = 60.0
    """How long a trial gets to write its checkpoint when it is asked to stop."""
    silence_seconds: Annotated[float, Field(ge=1)] = 30.0
    """How long a process of a trial on several devices may give no sign of life; then all of them start again."""
    stall_seconds: Annotated[float, Field(ge=1)] = 600.0
    """How long such a trial may finish no step, and a process of it wait for another in a collective."""
    ray_address: str | None = None
    """HOST:PORT of the fleet's head, for trials on several hosts; Ray's token comes from RAY_AUTH_TOKEN_PATH."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of a training process; default: the cores that the worker may use, shared out between workers."""
    workers: Annotated[int, Field(ge=1, le=64)] | None = None
    """Trials at a time on this host; default: one a GPU, or one where there is none."""
    cpu_slots: Annotated[int, Field(ge=1, le=512)] | None = None
    """Where there is no GPU: how many processes may train at a time; default: the cores that the worker may use."""
    ageing_seconds: Annotated[float, Field(ge=0)] = 300.0
    """After waiting so long for devices, a trial is passed by no other that needs fewer."""

    @field_validator("model_roots", "data_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value

    @property
    def roots(self) -> Roots:
        """The folders that job documents may name."""
        return Roots(models=self.model_roots, data=self.data_roots, hub=self.hub)

    def job_folder(self, job_id: str) -> JobFolder:
        """The folder of a job."""
        return job_folder(self.home, job_id)

    def redis(self, *, decode: bool = True, timeout_seconds: float = 5.0, retries: int = 3) -> Redis:
        """A connection that tries again for a moment when Redis is restarting; with no `retries`, fails at once."""
        return Redis.from_url(
            self.redis_url.get_secret_value(),
            decode_responses=decode,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
            retry_on_error=[ConnectionError, TimeoutError, BusyLoadingError] if retries else [],
            health_check_interval=15,
        )
