"""Bytes by digest: complete or not there, never another's path."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from volary_kit.artifacts import ArtifactStore, digest_of
from volary_kit.errors import DataLoss, InvalidArgument, NotFound


async def chunks(*parts: bytes):
    for part in parts:
        yield part


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


async def test_stream_comes_back_under_its_digest(store: ArtifactStore):
    digest = await store.put(chunks(b"ab", b"c"))
    assert digest == digest_of(b"abc")
    assert b"".join([part async for part in store.open(digest, chunk_bytes=2)]) == b"abc"
    assert b"".join([part async for part in store.open(digest, offset=1)]) == b"bc"
    assert (store.read(digest), store.size(digest), store.has(digest)) == (b"abc", 3, True)


async def test_wrong_digest_or_too_many_bytes_leave_nothing(store: ArtifactStore, tmp_path: Path):
    with pytest.raises(InvalidArgument) as caught:
        await store.put(chunks(b"abc"), expected=digest_of(b"abd"))
    assert caught.value.reason == "DIGEST_MISMATCH"
    with pytest.raises(InvalidArgument):
        await store.put(chunks(b"ab", b"c"), max_bytes=2)
    assert list((tmp_path / "artifacts").iterdir()) == []


async def test_stream_that_breaks_leaves_nothing(store: ArtifactStore, tmp_path: Path):
    async def breaks():
        yield b"abc"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(breaks())
    assert list((tmp_path / "artifacts").iterdir()) == []


async def test_writers_of_the_same_bytes_both_win(store: ArtifactStore):
    digests = await asyncio.gather(*(store.put(chunks(b"a", b"b")) for _ in range(8)))
    assert set(digests) == {digest_of(b"ab")}


def test_damage_is_found(store: ArtifactStore):
    digest = store.put_bytes(b"abc")
    store.path(digest).write_bytes(b"abd")
    with pytest.raises(DataLoss):
        store.read(digest)


@pytest.mark.parametrize("name", ["", "abc", "sha256:../../etc/passwd", "sha256:" + "A" * 64])
def test_only_a_digest_names_an_artifact(store: ArtifactStore, name: str):
    with pytest.raises(InvalidArgument):
        store.path(name)


def test_unknown_digest_is_not_found(store: ArtifactStore):
    with pytest.raises(NotFound):
        store.path(digest_of(b"never"))
