"""Bringing a database to the schema of this program: `python -m adapters.store.schema URL`.

Migrations run under an advisory lock, in one transaction: several engines
that start at once are safe, and a failed upgrade leaves the database as it was.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import asyncpg

HEAD = "0002"  # the schema this program works with; a test compares it with the migrations

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x6D75_7269_6D61  # "murima": any number, the same in every engine
_LOCK_WAIT_S = 60
_STATEMENT_S = 600  # a later migration may have much to rewrite
_alembic_is_global = threading.Lock()


class SchemaError(Exception):
    """The database's schema is not one that this program can use; `str()` says what would help."""


async def version(connection: asyncpg.Connection) -> str | None:
    """The schema version of the database, None for an empty one."""
    # Asked first, because PostgreSQL writes an error to its log for a table that is not there.
    if not await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
        return None
    found = await connection.fetchval("SELECT version_num FROM alembic_version")
    return None if found is None else str(found)


async def ensure(connection: asyncpg.Connection, url: str) -> None:
    """Upgrade the database behind `connection` if it is not at `HEAD`.

    The migration library is loaded only when there is something to do, and in
    a thread of its own: calls go on meanwhile.

    Raises:
        SchemaError: the database was written by a newer program.
        OSError, asyncpg.PostgresError: the database went away.
    """
    if await version(connection) != HEAD:
        await asyncio.to_thread(upgrade, url)


def upgrade(url: str) -> None:
    """Run what is missing, blocking. Raises like `ensure`."""
    with _alembic_is_global:
        asyncio.run(_upgrade(url))


async def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection, text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}

    def migrate(connection: Connection) -> None:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_S}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is not None:
            for (found,) in connection.execute(text("SELECT version_num FROM alembic_version")):
                if found not in known:
                    raise SchemaError(
                        f"the database has schema {found}, this program knows schemas up to {HEAD}: it was written by"
                        " a newer murima. Install that version again, or use another database"
                    )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(url, timeout=10, command_timeout=_STATEMENT_S)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the module."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.stderr.write("usage: python -m adapters.store.schema URL\n")
        return 2
    try:
        upgrade(given[0])
    except (SchemaError, OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        sys.stderr.write(f"schema: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
