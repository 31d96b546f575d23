"""Resource names of what a rollout is about."""

from __future__ import annotations

from volary_workflows.rollout.tasks import Subject


def model_name(subject: Subject) -> str:
    """Return the resource name of the model."""
    return f"projects/{subject.project}/models/{subject.model}"


def version_name(subject: Subject) -> str:
    """Return the resource name of the version."""
    return f"{model_name(subject)}/versions/{subject.version}"


def traffic_name(subject: Subject) -> str:
    """Return the resource name of the model's traffic."""
    return f"{model_name(subject)}/traffic"
