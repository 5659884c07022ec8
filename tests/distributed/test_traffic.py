"""A transfer exchanges c·r(m + n) numbers for a weight, however large m·n is; counted in two real processes."""

import json

import pytest

from tests.distributed.gang import start_together
from tests.distributed.traffic import RANK, SHAPE

MOST = {"anchored": 3.5, "lpka": 2.0}
"""c: three products with r columns and a few vectors; for lpka the target's factors and their gradient."""


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    work = tmp_path_factory.mktemp("traffic")
    start_together(2, "tests.distributed.traffic", work)
    return [json.loads((work / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", MOST)
@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_a_transfer_exchanges_no_more_numbers_than_its_factors_have(counted, strategy, method):
    first, second = (found[f"{strategy} {method}"] for found in counted)
    assert first == second
    assert 0 < first <= MOST[method] * RANK * sum(SHAPE)
    assert first < SHAPE[0] * SHAPE[1]
