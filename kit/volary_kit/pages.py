"""Pages of a list (AIP-158): an opaque token that says after which key to go on."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from volary_kit.errors import InvalidArgument

T = TypeVar("T")
Key = str | int
DEFAULT_SIZE = 100
MAX_NUMBER = 20  # digits of a 64-bit integer with its sign


class PageRequest(Protocol):
    """A request for one page."""

    @property
    def page_size(self) -> int:
        """Rows at most; 0 means the default."""
        ...

    @property
    def page_token(self) -> str:
        """From the previous page; empty asks for the first."""
        ...


@dataclass(frozen=True)
class Page:
    """Rows to read: `size` at most, after the key `after` (None: from the start)."""

    size: int
    after: Key | None = None

    @property
    def limit(self) -> int:
        """Rows to ask the database for: one more than shown, to see whether there is a next."""
        return self.size + 1


def page_of(request: PageRequest, kind: type[Key]) -> Page:
    """Return the page that a request asks for; raise InvalidArgument `PAGE_TOKEN_INVALID`."""
    size = request.page_size or DEFAULT_SIZE
    if not request.page_token:
        return Page(size)
    try:
        after = json.loads(base64.urlsafe_b64decode(request.page_token.encode()))
    except (binascii.Error, ValueError):
        after = None
    if type(after) is not kind:
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "page_token is not one that a previous page gave",
            field="page_token",
        )
    return Page(size, after)


def cut(rows: Sequence[T], page: Page, key: Callable[[T], Key]) -> tuple[Sequence[T], str]:
    """Return the rows to show and the token of the next page, empty when there is none."""
    if len(rows) <= page.size:
        return rows, ""
    shown = rows[: page.size]
    token = base64.urlsafe_b64encode(json.dumps(key(shown[-1])).encode()).decode()
    return shown, token


def split_key(key: Key) -> tuple[int, str]:
    """Return the parts of a page key `<number>:<text>`; raise InvalidArgument as `page_of`."""
    number, _, text = str(key).partition(":")
    if not number.lstrip("-").isdecimal() or len(number) > MAX_NUMBER or not text:
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "page_token is not one that a previous page gave",
            field="page_token",
        )
    return int(number), text
