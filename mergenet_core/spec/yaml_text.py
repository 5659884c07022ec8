"""Reads YAML, of which JSON is a part, into plain data: bounded in depth and size, without aliases or repeated keys.

Numbers are those of YAML 1.2: `010` is ten, `1:30` is text, `5e-4` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

import yaml

from mergenet_core.errors import FieldError, SpecInvalid

DEPTH_MAX = 32
NODES_MAX = 10_000
"""Values and keys in a document; more would keep the server busy for seconds."""
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_DIGITS = "-+.0123456789"
_NUMBERS = (
    (_INT, re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
    (
        _FLOAT,
        re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    ),
)  # fmt: skip
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: ten times as fast."""


class _Loader(_Parser):  # type: ignore[misc, valid-type]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    message = (
                        f"{key.value[:100]} is given twice, again in line {key.start_mark.line + 1}; keep one of them"
                    )
                    raise SpecInvalid(f"the document repeats a key: {message}", errors=(FieldError("", message),))
                seen.add(key.value)
        found: dict[Hashable, object] = super().construct_mapping(node, deep)
        return found

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value
        if node.tag == _FLOAT:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (_INT, _FLOAT)]
    for first, found in _Parser.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_DIGITS))
    _Loader.add_constructor(_tag, _Loader.construct_number)


def read_yaml(document: str | bytes) -> object:
    """Read a document. Raises: `SpecInvalid`."""
    try:
        _check_form(document)
        return yaml.load(document, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SpecInvalid(f"the document is neither YAML nor JSON: {error}") from None


def _check_form(document: str | bytes) -> None:
    """Refuse what would take long to read, before anything is made of it. Raises: `YAMLError`."""
    depth = nodes = 0
    for event in yaml.parse(document, Loader=_Parser):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX or nodes > NODES_MAX:
            raise yaml.YAMLError(f"it may have {DEPTH_MAX} levels and {NODES_MAX} values and keys at most")
