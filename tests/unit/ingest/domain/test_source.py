from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from volary_ingest.domain.source import Source, read_source
from volary_kit.errors import InvalidArgument

Change = Callable[[dict[str, Any]], Any]


def test_what_it_reads_of_other_sources(parcels: Source) -> None:
    assert parcels.spec.references() == {"hubs": {"hub", "zone"}}


def test_what_a_snapshot_of_it_holds(parcels: Source) -> None:
    assert parcels.spec.kept() == ["number", "hub", "sent_at", "arrived_at", "weight", "zone"]


def test_numbers_that_came_as_doubles_are_whole_again(new_document: Any) -> None:
    document = new_document()
    document["spec"]["contract"][4]["min_rows"] = 4.0
    assert read_source(document).spec.contract[4].min_rows == 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("owner"), "owner"),
        (lambda d: d.update(on_call=""), "on_call"),
        (lambda d: d.update(kind="Model"), "kind"),
        (lambda d: d.update(name="Not A Name"), "name"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["spec"].update(keys=["gone"]), "gone"),
        (lambda d: d["spec"].update(event_time="weight"), "weight is no instant"),
        (lambda d: d["spec"]["fields"].append({"name": "hub", "type": "string"}), "hub is decl"),
        (lambda d: d["spec"]["fields"].append({"name": "known_at", "type": "string"}), "known_at"),
        (lambda d: d["spec"]["fields"].append({"name": "l", "type": "local_timestamp"}), "no zone"),
        (lambda d: d["spec"]["fields"][0].update(type="number"), "spec.fields[0].type"),
        (lambda d: d["spec"]["derive"][0]["lookup"].update(by="gone"), "gone"),
        (lambda d: d["spec"]["derive"][0]["lookup"].update(source="parcels"), "itself"),
        (lambda d: d["spec"]["contract"][1].update(column="gone"), "gone"),
        (lambda d: d["spec"]["contract"][1].update(name="arrived"), "arrived is declared twice"),
        (lambda d: d["spec"]["contract"][2].update(min="a"), "spec.contract[2]"),
        (lambda d: d["spec"]["connector"].update(kind="shell"), "connector"),
    ],
)  # fmt: skip
def test_a_wrong_document_is_refused_and_the_fault_named(
    change: Change, named: str, new_document: Any
) -> None:
    document = new_document()
    change(document)
    with pytest.raises(InvalidArgument) as refused:
        read_source(document)
    assert refused.value.reason == "DOCUMENT_INVALID"
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "file",
    ["/etc/passwd.csv", "../up.csv", "a/../../up.csv", "a//b.csv", "model.pkl", "a\\b.csv", ".csv"],
)
def test_a_file_is_never_a_path(file: str, new_document: Any) -> None:
    document = new_document()
    connector = {"kind": "python_package_files", "package": "some-package", "file": file}
    document["spec"]["connector"] = connector
    with pytest.raises(InvalidArgument):
        read_source(document)
