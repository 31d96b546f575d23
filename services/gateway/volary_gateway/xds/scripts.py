"""The two Lua scripts of the edge, with the tables of methods and services before them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

from volary_gateway.xds.edge import INFERENCE, REST, Method, RouteKind
from volary_gateway.xds.routes import ASIDE


def admission(methods: Iterable[Method], *, has_rest: bool = False) -> str:
    """Return the script that runs before the message is read."""
    prefix = f'"{REST}"' if has_rest else "nil"
    rest = f"local REST = {prefix}\n"
    return "\n".join((_methods(methods), rest, _text("status.lua"), _text("admit.lua")))


def routing(methods: Iterable[Method], services: Iterable[str]) -> str:
    """Return the script that runs once the first message is read."""
    known = "".join(f'["{service}"]=true,' for service in sorted(services))
    table = f'local SERVICES = {{{known}}}\nlocal ASIDE = "{ASIDE}"\n'
    return "\n".join((_methods(methods), table, _text("status.lua"), _text("route.lua")))


def version_field(method: Method) -> str:
    """Return the field by which a caller pins a version, empty when there is none."""
    match method.path.rpartition("/")[2]:
        case "ModelInfer" | "ModelStreamInfer":
            return "model_version"
        case "Predict":
            return "version"
        case "Explain":
            return "prediction.version"
    is_information = method.path.startswith(INFERENCE) and method.kind is RouteKind.INFO
    return "version" if is_information else ""


def _methods(methods: Iterable[Method]) -> str:
    rows = "\n".join(
        f'["{m.path}"]={{kind="{m.kind}",field="{m.field}",version="{version_field(m)}",service="{m.service}",'
        f"default={m.default_deadline_ms},max={m.max_deadline_ms}}},"
        for m in methods
    )
    return f"local METHODS = {{\n{rows}\n}}\n"


def _text(name: str) -> str:
    return (resources.files("volary_gateway.xds") / "lua" / name).read_text()
