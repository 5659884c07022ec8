"""A connection as RQ needs it."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.conftest import RedisServer


@pytest.fixture
def raw(redis_server: RedisServer) -> Redis:
    return redis_server.client(decode=False)
