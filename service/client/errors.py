"""Turns an HTTP problem back into the error that the service raised."""

from __future__ import annotations

from typing import NoReturn

import httpx2
from pydantic import BaseModel, ValidationError

from mergenet_core.errors import FieldError, MergeNetError
from service.schemas import PROBLEM_TYPE


class _Problem(BaseModel):
    type: str
    detail: str
    errors: list[FieldError] = []


def raise_problem(answer: httpx2.Response) -> NoReturn:
    """Raise the error of a response, under its own class where its code has one."""
    try:
        problem = _Problem.model_validate_json(answer.content)
    except ValidationError:
        raise MergeNetError(
            f"{answer.url} answered {answer.status_code} without problem details; is it a MergeNet service?"
        ) from None
    code = problem.type.removeprefix(PROBLEM_TYPE)
    known = {kind.code: kind for kind in MergeNetError.__subclasses__()}
    error = known.get(code, MergeNetError)(problem.detail, errors=tuple(problem.errors))
    error.code = code
    raise error
