"""A declared training as a plan."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from volary_kit.errors import InvalidArgument
from volary_workflows.retrain.activities import broken_floors
from volary_workflows.retrain.declaration import plan_of

ROOT = Path(__file__).parents[4]
DAY_US = 86_400_000_000


@pytest.fixture
def document():
    """The example, as it comes back from a Struct: every number a float, every instant a text."""
    text = (ROOT / "examples/flights/training.yaml").read_text()
    data = yaml.load(text, yaml.BaseLoader)
    data["spec"]["gate"] = {"metric": "log_loss", "margin": 0.01, "floors": {"auc": 0.6}}
    return MessageToDict(ParseDict(numbers(data), Struct()))


def numbers(value):
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [numbers(each) for each in value]
    try:
        return float(value)
    except ValueError:
        return value


def test_the_example_is_a_plan(document):
    plan = plan_of(document, project="default")
    assert (plan.model, plan.feature_set) == ("flights-delay", "flights-delay")
    assert plan.sources[0] == "landings"
    assert plan.start_us == 1_356_998_400_000_000  # 2013-01-01T00:00:00Z
    assert plan.holdout_us == 7 * DAY_US
    assert plan.gate.metric == "log_loss"
    assert plan.rollout.model == "flights-delay"
    assert plan.spine["source"] == "landings"


@pytest.mark.parametrize(
    ("section", "key", "value", "field"),
    [
        ("gate", "metric", "charm", "gate.metric"),
        ("gate", "margin", 0, "gate.margin"),
        ("gate", "alpha", 1.0, "gate.alpha"),
        ("gate", "method", "bootstrap", "gate.method"),
        ("gate", "patience", 1, "gate.patience"),
        ("window", "start", "some day", "window.start"),
        ("window", "holdout", "a week", "window.holdout"),
        ("rollout", "steps", [{"weight": "101%"}], "rollout.steps[0].weight"),
    ],
)
def test_what_is_wrong_is_named(document, section, key, value, field):
    broken = copy.deepcopy(document)
    broken["spec"][section][key] = value
    with pytest.raises(InvalidArgument) as refused:
        plan_of(broken, project="default")
    assert field in refused.value.violations


def test_floors_need_the_metric_itself():
    assert broken_floors({"auc": 0.6}, {"auc": 0.61}) == []
    assert broken_floors({"auc": 0.6}, {"auc": 0.59}) == ["auc is 0.5900, below its floor 0.6"]
    assert broken_floors({"auc": 0.6}, {}) == ["auc is nan, below its floor 0.6"]
