"""Search attributes: what Temporal's own lists and its UI can be filtered by."""

from __future__ import annotations

from temporalio.common import SearchAttributeKey, SearchAttributeUpdate

PROJECT = SearchAttributeKey.for_keyword("VolaryProject")
MODEL = SearchAttributeKey.for_keyword("VolaryModel")
STATE = SearchAttributeKey.for_keyword("VolaryState")
KEYS = (PROJECT, MODEL, STATE)


def searchable(project: str, model: str, state: str) -> list[SearchAttributeUpdate]:
    """Return the attributes of a rollout or retrain as it is now; no model is known yet when ''."""
    updates = [PROJECT.value_set(project), STATE.value_set(str(state))]
    return [*updates, MODEL.value_set(model)] if model else updates
