"""One PostgreSQL server for all tests of the store in this worker, an empty database for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import TestServer


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    with TestServer.started(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def url(postgres: TestServer) -> str:
    return postgres.new_database()
