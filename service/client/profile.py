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
    """Empty in the file of a home whose service has stopped: the key is kept for the next start."""
    api_key: str


def find_profile(home: Path | None) -> Profile | None:
    """The profile from MERGENET_URL and MERGENET_API_KEY, else from the home's file; None if there is neither."""
    url, key = os.environ.get("MERGENET_URL"), os.environ.get("MERGENET_API_KEY")
    if url and home is None:
        return Profile(url=url, api_key=key or "")
    found = read_profile(home or Path(os.environ.get("MERGENET_HOME") or DEFAULT_HOME))
    return found.model_copy(update={"api_key": key} if key and home is None else {}) if found else None


def read_profile(home: Path) -> Profile | None:
    """The profile of the service that runs in a home; None if none runs or the file cannot be read."""
    found = _read(home)
    return found if found and found.url else None


def read_key(home: Path) -> str | None:
    """The key in a home's file, also after its service has stopped; None if there is none."""
    found = _read(home)
    return found.api_key if found else None


def clear_address(home: Path) -> None:
    """Note in a home's file that its service has stopped, so that nobody sends the key to its old address."""
    found = _read(home)
    if found and found.url:
        write_profile(home, found.model_copy(update={"url": ""}))


def _read(home: Path) -> Profile | None:
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
