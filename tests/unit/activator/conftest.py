"""What the tests of the whole activator share."""

from collections.abc import AsyncIterator

import pytest

from tests.staged import Stage, staged


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage
