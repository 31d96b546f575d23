"""Schemas are brought up once, by whoever comes first, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from volary_kit.errors import VolaryError
from volary_kit.migrations import MigrationError, migrate, migrations_of

FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {down!r}
branch_labels = None
depends_on = None


def upgrade():
    {body}
"""


@pytest.fixture
async def url(postgres) -> str:
    connection = await asyncpg.connect(postgres.url())
    await connection.execute("DROP DATABASE IF EXISTS migrated WITH (FORCE)")
    await connection.execute("CREATE DATABASE migrated")
    await connection.close()
    return postgres.url(database="migrated")


def revision(folder: Path, name: str, down: str | None, body: str) -> None:
    versions = folder / "versions"
    versions.mkdir(exist_ok=True)
    text = FIRST.format(revision=name, down=down, body=body)
    (versions / f"{name}.py").write_text(text)


async def fetch(url: str, query: str) -> list:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(query)
    await connection.close()
    return [tuple(row) for row in rows]


TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'shop' ORDER BY 1"


async def test_schema_gets_kit_and_service_tables_and_nothing_goes_to_public(url, tmp_path: Path):
    revision(tmp_path, "r1", None, "op.create_table('goods', sa.Column('id', sa.Integer))")
    await migrate(url, "shop", tmp_path)
    assert [name for (name,) in await fetch(url, TABLES)] == [
        "alembic_version",
        "goods",
        "kit_alembic_version",
        "kit_operations",
        "kit_outbox",
        "kit_replies",
    ]
    public = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    assert await fetch(url, public) == [(0,)]


async def test_later_revision_is_added_and_the_rest_left(url, tmp_path: Path):
    revision(tmp_path, "r1", None, "op.create_table('goods', sa.Column('id', sa.Integer))")
    await migrate(url, "shop", tmp_path)
    await migrate(url, "shop", tmp_path)
    revision(tmp_path, "r2", "r1", "op.add_column('goods', sa.Column('price', sa.Integer))")
    await migrate(url, "shop", tmp_path)
    assert await fetch(url, "SELECT version_num FROM shop.alembic_version") == [("r2",)]
    assert await fetch(url, "SELECT id, price FROM shop.goods") == []


async def test_replicas_that_start_together_migrate_once(url, tmp_path: Path):
    revision(tmp_path, "r1", None, "op.create_table('goods', sa.Column('id', sa.Integer))")
    await asyncio.gather(*(migrate(url, "shop", tmp_path) for _ in range(4)))
    assert await fetch(url, "SELECT version_num FROM shop.alembic_version") == [("r1",)]


async def test_revision_that_fails_leaves_nothing(url, tmp_path: Path):
    revision(tmp_path, "r1", None, "op.create_table('goods', sa.Column('id', sa.Integer))")
    revision(tmp_path, "r2", "r1", "op.execute('SELECT 1 / 0')")
    with pytest.raises(Exception, match="division by zero"):
        await migrate(url, "shop", tmp_path)
    assert await fetch(url, TABLES) == []


async def test_two_heads_are_refused(url, tmp_path: Path):
    revision(tmp_path, "r1", None, "pass")
    revision(tmp_path, "r2", None, "pass")
    with pytest.raises(MigrationError, match="2 heads: r1, r2"):
        await migrate(url, "shop", tmp_path)


async def test_two_services_share_a_database_and_see_only_their_own(url, tmp_path: Path):
    for name in ("shop", "bank"):
        folder = tmp_path / name
        folder.mkdir()
        revision(folder, "r1", None, f"op.create_table('{name}s', sa.Column('id', sa.Integer))")
        await migrate(url, name, folder)
    assert await fetch(url, "SELECT count(*) FROM bank.banks") == [(0,)]
    with pytest.raises(asyncpg.UndefinedTableError):
        await fetch(url, "SELECT * FROM bank.shops")


async def test_server_that_is_away_is_unavailable(tmp_path: Path):
    with pytest.raises(VolaryError) as caught:
        await migrate("postgresql://u:p@127.0.0.1:1/none", "shop", tmp_path)
    assert caught.value.reason == "DATABASE_UNAVAILABLE"


def test_folder_of_a_service_is_found_beside_its_package():
    folder = migrations_of("volary_registry")
    assert folder is None or (folder / "versions").is_dir()
    with pytest.raises(MigrationError, match="volary_nobody is not installed"):
        migrations_of("volary_nobody")
