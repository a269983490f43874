"""Migrations: from nothing, again, by two at once, and a database from the future."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from adapters.store import schema
from tests.postgres import ROOT


async def _tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {r["tablename"] for r in rows}
    finally:
        await connection.close()


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "adapters/store/migrations"))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


async def test_empty_database_gets_the_tables_and_a_second_run_changes_nothing(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        assert await schema.version(connection) is None
        await schema.ensure(connection, url)
        assert await schema.version(connection) == schema.HEAD
        await connection.execute("INSERT INTO events VALUES ('e', now(), 'n', NULL, NULL, NULL, '{}')")
        await asyncio.to_thread(schema.upgrade, url)
        assert await connection.fetchval("SELECT count(*) FROM events") == 1
    finally:
        await connection.close()
    assert await _tables(url) == {"alembic_version", "events", "interactions"}


def test_two_migrators_at_once(url: str) -> None:
    command = [sys.executable, "-m", "adapters.store.schema", url]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
    assert asyncio.run(_tables(url)) == {"alembic_version", "events", "interactions"}


async def test_a_database_from_a_newer_program_is_refused_with_a_clear_sentence(url: str) -> None:
    await asyncio.to_thread(schema.upgrade, url)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(schema.SchemaError, match=r"schema 9999.*newer murima"):
            await schema.ensure(connection, url)
    finally:
        await connection.close()


def test_program_says_what_is_wrong_and_fails(tmp_path: object) -> None:
    command = [sys.executable, "-m", "adapters.store.schema", f"postgresql://x@/x?host={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("schema: ")
    assert "Traceback" not in done.stderr
