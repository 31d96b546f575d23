"""Bring a service's schema to its newest revision: kit's tables first, then its own.

Revision files lie in `migrations/versions` without an `env.py`. All of them run in one
transaction under an advisory lock, so that replicas which start together do it once and a
failure leaves nothing half-made.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

KIT_FOLDER = Path(str(files("volary_kit"))) / "tables" / "migrations"
KIT_VERSIONS = "kit_alembic_version"
SERVICE_VERSIONS = "alembic_version"


class MigrationError(Exception):
    """A schema cannot be brought to its newest revision."""


def migrations_of(package: str) -> Path | None:
    """Return the migrations of a service package: in its wheel, else beside it in the tree."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MigrationError(f"package {package} is not installed")
    home = Path(spec.origin).parent
    for folder in (home / "migrations", home.parent / "migrations"):
        if (folder / "versions").is_dir():
            return folder
    return None


async def migrate(url: str, schema: str, folder: Path | None) -> None:
    """Create the schema if it is not there and run what it lacks."""
    from sqlalchemy import text

    from volary_kit.database import new_engine, translated

    engine = new_engine(url, schema, pool_size=1)
    try:
        with translated():
            async with engine.begin() as connection:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
                    {"key": f"volary.migrate.{schema}"},
                )
                await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
                await connection.run_sync(_upgrade, KIT_FOLDER, KIT_VERSIONS)
                if folder is not None:
                    await connection.run_sync(_upgrade, folder, SERVICE_VERSIONS)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, folder: Path, version_table: str) -> None:
    # slow to import, here and above: a service without a database is spared them
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    heads = script.get_heads()
    if len(heads) > 1:
        raise MigrationError(f"{folder} has {len(heads)} heads: {', '.join(sorted(heads))}")

    def steps(revision: Any, _context: Any) -> Any:
        return script._upgrade_revs("head", revision)  # noqa: SLF001 - what alembic's own command calls

    with EnvironmentContext(config, script, fn=steps, destination_rev="head") as environment:
        environment.configure(connection=connection, version_table=version_table)
        environment.run_migrations()
