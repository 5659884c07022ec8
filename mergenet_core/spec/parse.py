"""Reads job documents: `parse` returns a `JobSpec`, or raises an error with every fault and its remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from mergenet_core.errors import FieldError, SpecInvalid
from mergenet_core.spec.data import NAME_PATTERN
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.json_values import JsonObject, get_object, get_str
from mergenet_core.spec.yaml_text import read_yaml

_FREE_FORM = ("config", "deepspeed")
"""Settings whose keys are not the document's own."""
_KEYS_MAX = 1000
_FAULTS_MAX = 20
"""Faults that are described. Nobody corrects thousands at once, and finding the nearest key of each takes minutes."""
_FIELD = re.compile(r"[a-z_]+(?:\.[a-z_]+)*")
_MESSAGES = {
    "model_type": "must be a mapping of keys and values",
    "model_attributes_type": "must be a mapping of keys and values",
    "dict_type": "must be a mapping of keys and values",
    "list_type": "must be a list",
    "string_type": "must be text; put it in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "json_invalid": "must be JSON",
}
"""In place of pydantic's sentences, which name Python's types."""


def parse(document: str | bytes | Mapping[str, object]) -> JobSpec:
    """Read a job document given as YAML or JSON text, or as parsed data.

    Raises: `SpecInvalid` with every fault's pointer and remedy.
    """
    data: object = document
    if isinstance(document, (str, bytes)):
        data = read_yaml(document)
    if not isinstance(data, Mapping):
        raise SpecInvalid("the document must be a mapping with name, source, target and train")
    _check_width(data, "the document")
    try:
        return JobSpec.model_validate(data)
    except ValidationError as error:
        count = f"{error.error_count()} faults" if error.error_count() > 1 else "a fault"
        faults = tuple(_fault(details) for details in error.errors(include_url=False)[:_FAULTS_MAX])
        raise SpecInvalid(f"the job document has {count}: {faults[0].message}", errors=faults) from None


def _check_width(data: Mapping[object, object], where: str) -> None:
    """Refuse a mapping with thousands of keys before each is described as a fault. Raises: `SpecInvalid`."""
    if len(data) > _KEYS_MAX:
        raise SpecInvalid(f"{where} has {len(data)} keys; {_KEYS_MAX} is the most, and most of these are unknown")
    for key, value in data.items():
        if isinstance(value, Mapping) and key not in _FREE_FORM:
            _check_width(value, str(key)[:100])


def digest(spec: JobSpec) -> str:
    """SHA-256 of a job document with all defaults filled in; it does not depend on order or notation."""
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, JsonValue]:
    """The JSON Schema (2020-12) of the job document, for editors and clients."""
    title: dict[str, JsonValue] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MergeNet job, version 1",
    }
    return title | JobSpec.model_json_schema()


def _fault(details: ErrorDetails) -> FieldError:
    location = [_shortened(str(part), 100) for part in details["loc"]]
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in location)
    where = ".".join(location) or "the document"
    given = _given(details.get("input"))
    if details["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known)}"
        return FieldError(pointer, f"{where} is not a known key; {hint}")
    if details["type"] == "missing":
        return FieldError(pointer, f"{where} is missing; it is required")
    message = _MESSAGES.get(details["type"]) or details["msg"].removeprefix("Value error, ")
    if details["type"] == "string_pattern_mismatch" and details.get("ctx", {}).get("pattern") == NAME_PATTERN:
        message = "must be one line of visible text, without control characters or marks that change its direction"
    if details["type"] == "value_error":
        # a fault of the whole document, or of a part, begins with the field that it is about
        field = _FIELD.match(message)
        if field is not None and field[0].partition(".")[0] in _fields_at(location):
            inner = "".join(f"/{name}" for name in field[0].split("."))
            return FieldError(pointer + inner, f"{where}: {message}" if location else message)
        return FieldError(pointer, f"{where}: {message}")
    return FieldError(pointer, f"{where}: {message[:1].lower()}{message[1:]} (given: {given})")


def _given(value: object) -> str:
    try:
        return _shortened(json.dumps(value, default=repr, ensure_ascii=True), 80)
    # keys that only YAML has; nesting that can be read, not written; numbers too long to print
    except (TypeError, RecursionError, ValueError):
        return type(value).__name__


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _fields_at(location: list[str]) -> list[str]:
    schema = _schema()
    node = schema
    for part in location:
        node = _resolve(node, schema)
        node = get_object(node, "items") if part.isdigit() else get_object(get_object(node, "properties"), part)
    return sorted(get_object(_resolve(node, schema), "properties"))


@cache
def _schema() -> JsonObject:
    return JobSpec.model_json_schema()


def _resolve(node: JsonObject, schema: JsonObject) -> JsonObject:
    """The schema that a node, or one of its alternatives, refers to; else the node itself."""
    alternatives = node.get("anyOf")
    for choice in [node, *(alternatives if isinstance(alternatives, list) else [])]:
        if isinstance(choice, Mapping) and "$ref" in choice:
            return get_object(get_object(schema, "$defs"), get_str(choice, "$ref").rsplit("/", 1)[-1])
    return node
