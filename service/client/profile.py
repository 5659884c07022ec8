"""Finds the service for the command line: from the environment, else from the file that `mergenet up` writes."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

FILE = "client.json"
DEFAULT_HOME = Path("mergenet-home")


class Profile(BaseModel):
    """A service's address and a key for it."""

    url: str
    api_key: str


def find_profile(home: Path | None) -> Profile | None:
    """The profile from MERGENET_URL and MERGENET_API_KEY, else from the home's file; None if there is neither."""
    url, key = os.environ.get("MERGENET_URL"), os.environ.get("MERGENET_API_KEY")
    if url and home is None:
        return Profile(url=url, api_key=key or "")
    found = read_profile(home or Path(os.environ.get("MERGENET_HOME") or DEFAULT_HOME))
    return found.model_copy(update={"api_key": key} if key and home is None else {}) if found else None


def read_profile(home: Path) -> Profile | None:
    """The profile in a home; None if it has none that can be read."""
    try:
        return Profile.model_validate_json((home / FILE).read_text())
    except (OSError, ValidationError):
        return None


def write_profile(home: Path, profile: Profile) -> None:
    """Write the profile into a home, readable for its owner only."""
    draft = home / f".{FILE}"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(profile.model_dump_json())
    draft.replace(home / FILE)
