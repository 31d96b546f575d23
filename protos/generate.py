"""Build hook: turn the .proto files into Python, stubs, `contract.binpb` and `methods.json`."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
OUT = ROOT / "generated"
# google/longrunning is generated under a name of our own: two packages on the index ship that
# module with different descriptors, and whichever was installed last would win.
LONGRUNNING = ("google/longrunning", "volary_longrunning")
VENDORED = ("buf/validate/validate.proto", "google/longrunning/operations.proto")
IDEMPOTENCY = "IDEMPOTENCY_"


class GenerateHook(BuildHookInterface[Any]):
    """Generate before every wheel, editable ones included; uv re-runs it when a .proto changes."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 hatchling's
        generate()


def generate() -> None:
    """Write `generated/` anew: a half-written folder is never left behind."""
    fresh = ROOT / ".generating"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    own = [*(ROOT / "volary").rglob("*.proto"), *(ROOT / "inference").rglob("*.proto")]
    names = sorted(str(path.relative_to(ROOT)) for path in own)
    _compile(fresh, [*names, *VENDORED])
    _rename_longrunning(fresh)
    _write_contract(fresh)
    (fresh / "volary_longrunning" / "py.typed").touch()
    shutil.rmtree(OUT, ignore_errors=True)
    fresh.rename(OUT)


def _compile(out: Path, names: list[str]) -> None:
    from grpc_tools import protoc

    well_known = str(resources.files("grpc_tools") / "_proto")
    plain = [
        "protoc",
        f"-I{ROOT}",
        f"-I{ROOT / 'third_party'}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet,only_async:{out}",
        "--include_imports",
        f"--descriptor_set_out={out / 'contract.binpb'}",
    ]
    code: int = protoc.main([*plain, *names])
    if code != 0:
        raise RuntimeError(f"protoc failed with exit code {code}; its message is above")


def _rename_longrunning(out: Path) -> None:
    old, new = LONGRUNNING
    (out / old).rename(out / new)
    shutil.rmtree(out / "google", ignore_errors=True)
    dotted = old.replace("/", ".")
    for path in [*out.rglob("*.py"), *out.rglob("*.pyi")]:
        text = path.read_text()
        fixed = re.sub(rf"\b{re.escape(dotted)}\b(?=[ .](?:import|operations_pb2))", new, text)
        if fixed != text:
            path.write_text(fixed)


def _write_contract(out: Path) -> None:
    package = out / "volary_contract"
    package.mkdir()
    (out / "contract.binpb").rename(package / "contract.binpb")
    shutil.copy(ROOT / "contract.py", package / "__init__.py")
    methods = read_policies(package / "contract.binpb", ROOT / "volary/policy/v1/foreign.textproto")
    (package / "methods.json").write_text(json.dumps(methods, indent=1, sort_keys=True) + "\n")


def read_policies(descriptors: Path, foreign: Path) -> dict[str, dict[str, Any]]:
    """Return one flat row for each RPC that has a policy, keyed by `/package.Service/Method`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    option = pool.FindExtensionByName("volary.policy.v1.method")
    options = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("google.protobuf.MethodOptions")
    )
    rows: dict[str, dict[str, Any]] = {}
    for file in files.file:
        for service in file.service:
            for method in service.method:
                name = f"/{file.package}.{service.name}/{method.name}"
                own = options.FromString(method.options.SerializeToString())
                if own.HasExtension(option):
                    rows[name] = _row(own.Extensions[option])
                    rows[name]["client_streaming"] = method.client_streaming
                    rows[name]["server_streaming"] = method.server_streaming
    table = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("volary.policy.v1.ForeignPolicies")
    )()
    text_format.Parse(foreign.read_text(), table, descriptor_pool=pool)
    for entry in table.methods:
        rows[entry.method] = _row(entry.policy)
        rows[entry.method]["client_streaming"] = entry.client_streaming
        rows[entry.method]["server_streaming"] = entry.server_streaming
    return rows


def _row(policy: Any) -> dict[str, Any]:
    roles = policy.DESCRIPTOR.fields_by_name["allow"].enum_type.values_by_number
    kinds = policy.DESCRIPTOR.fields_by_name["idempotency"].enum_type.values_by_number
    return {
        "allow": sorted(roles[role].name.removeprefix("ROLE_").lower() for role in policy.allow),
        "default_deadline_ms": _milliseconds(policy.default_deadline),
        "max_deadline_ms": _milliseconds(policy.max_deadline),
        "unbounded": policy.unbounded,
        "idempotency": kinds[policy.idempotency].name.removeprefix(IDEMPOTENCY).lower(),
        "max_request_bytes": policy.max_request_bytes,
        "route_field": policy.route_field,
        "edge": policy.edge,
    }


def _milliseconds(duration: Any) -> int:
    return duration.seconds * 1_000 + duration.nanos // 1_000_000


if __name__ == "__main__":
    generate()
