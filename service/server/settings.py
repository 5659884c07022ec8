"""What the operator sets for the API alone, beside what it shares with the workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from mergenet_core.settings import Settings

KEY_LENGTH = 16
"""Shortest key that is accepted from the environment."""


class ServiceSettings(Settings):
    """Environment variables that begin with MERGENET_, read once at the start."""

    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port that is listened on."""
    api_key: SecretStr | None = None
    """A key with every scope, held in memory only; more keys are made with it."""
    insecure_no_auth: bool = False
    """Answer everyone, without a key: for a machine that nobody else reaches."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Longest request body that is read."""
    reconcile_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How often the queue is compared with the records."""

    @field_validator("api_key")
    @classmethod
    def _long_enough(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None or not key.get_secret_value():
            return None
        if len(key.get_secret_value()) < KEY_LENGTH:
            raise ValueError(f"MERGENET_API_KEY needs at least {KEY_LENGTH} characters")
        return key
