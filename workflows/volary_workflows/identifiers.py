"""Workflow ids: what may run only once at a time has one id."""

from __future__ import annotations

TASK_QUEUE = "volary-workflows"


def rollout_workflow_id(project: str, model: str) -> str:
    """Return the id of a model's rollout: one at a time."""
    return f"rollout/{project}/{model}"


def experiment_workflow_id(project: str, model: str) -> str:
    """Return the id of a model's experiment: one at a time."""
    return f"experiment/{project}/{model}"


def experiment_group_id(project: str, group: str) -> str:
    """Return the id that one experiment of a group holds while it runs."""
    return f"experiment-group/{project}/{group}"


def retrain_workflow_id(project: str, training: str, cause: str) -> str:
    """Return the id of a retrain: once for the same cause, however often it is reported."""
    return f"retrain/{project}/{training}/{cause}"


def retrain_hold_id(project: str, training: str) -> str:
    """Return the id that one retrain of a training holds while it runs, whatever its cause."""
    return f"retrain-hold/{project}/{training}"


def retrain_schedule_id(project: str, training: str) -> str:
    """Return the id of the schedule that starts a training's retrains."""
    return f"retrain/{project}/{training}"
