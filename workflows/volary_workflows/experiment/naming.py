"""Ids of experiments: told apart from those of rollouts by a dot, which no other id holds."""

from __future__ import annotations

MARK = ".x."


def experiment_id(model: str, name: str, seed: str) -> str:
    """Return the id of an experiment: its routes and stored verdicts are named by it."""
    return f"{model}{MARK}{name}.{seed[-8:]}"


def model_of(experiment: str) -> str:
    """Return the model that an experiment id names, empty for an id of another form."""
    model, mark, _ = experiment.partition(MARK)
    return model if mark else ""


def is_experiment(owner: str) -> bool:
    """Say whether the id of whoever wrote some traffic is an experiment's."""
    return MARK in owner
