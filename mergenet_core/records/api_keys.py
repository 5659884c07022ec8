"""Records of API keys, without the keys themselves."""

from __future__ import annotations

from typing import Literal

from mergenet_core.records.record import Record

OPERATOR, ANONYMOUS = "operator", "anonymous"
"""Who uses MERGENET_API_KEY, and who uses a service without keys; no other key may have these names."""
Scope = Literal["read", "submit", "admin"]


class ApiKey(Record):
    """The owner of an API key. Of the key itself only the SHA-256 is stored."""

    name: str
    scopes: tuple[Scope, ...]
