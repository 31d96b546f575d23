"""`docs/status.md` says what the running services say."""

from __future__ import annotations

from pathlib import Path

from tests.contract.services import SERVICES
from tests.contract.status import DOCUMENT, document, survey


async def test_the_committed_document_is_the_generated_one(
    surveyed: dict[str, dict[str, bool]], tmp_path: Path
) -> None:
    is_complete = set(surveyed) == {service.name for service in SERVICES}
    text = document(surveyed) if is_complete else await survey(tmp_path)
    assert DOCUMENT.read_text() == text, "run python -m tests.contract.status --write"
