"""Resource names (AIP-122): parse and write `projects/{project}/models/{model}` and the like."""

from __future__ import annotations

import re
from functools import cache

from volary_kit.calls import current_call
from volary_kit.errors import InvalidArgument, NotFound

ID = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}"


@cache
def _matcher(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    text = "".join(
        re.escape(part) if i % 2 == 0 else f"(?P<{part}>{ID})" for i, part in enumerate(parts)
    )
    return re.compile(text)


def parse(template: str, name: str, *, field: str) -> dict[str, str]:
    """Split a resource name into its ids.

    Raises InvalidArgument `NAME_MALFORMED` when it does not fit the template, and NotFound
    `RESOURCE_NOT_FOUND` when its project is not the caller's: another tenant's name is not
    told from one that does not exist.
    """
    match = _matcher(template).fullmatch(name)
    if match is None:
        raise InvalidArgument("NAME_MALFORMED", f"{field} must be {template}", field=field)
    ids = match.groupdict()
    if "project" in ids and ids["project"] != current_call().project:
        raise NotFound("RESOURCE_NOT_FOUND", f"{name} does not exist", metadata={"resource": name})
    return ids


def project_of(parent: str, *, field: str = "parent") -> str:
    """Return the project id of `projects/{project}`; errors as in `parse`."""
    return parse("projects/{project}", parent, field=field)["project"]
