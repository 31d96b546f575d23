"""Declared projects: read a folder of YAML, plan what it changes, apply it."""

from volary_cli.projects.applying import Action, Change, apply_project, plan_project
from volary_cli.projects.reading import Declaration, find, read_project

__all__ = [
    "Action",
    "Change",
    "Declaration",
    "apply_project",
    "find",
    "plan_project",
    "read_project",
]
