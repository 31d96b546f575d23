"""The settings that each service declares: what it may be handed, checked before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module, util

from volary_kit.settings import ServiceSettings, SettingsError, prefix_of

from volary_cli.launcher.errors import ConfigurationError


@cache
def settings_type(service: str) -> type[ServiceSettings]:
    """Return the settings class of a service, from `volary_<service>.settings`."""
    module_name = f"volary_{service}.settings"
    if util.find_spec(f"volary_{service}") is None or util.find_spec(module_name) is None:
        raise ConfigurationError(f"{module_name} is not there: is volary-{service} installed?")
    module = import_module(module_name)
    for value in vars(module).values():
        is_settings = isinstance(value, type) and issubclass(value, ServiceSettings)
        if is_settings and value.service == service:
            return value
    raise ConfigurationError(f"{module_name} declares no settings of {service}")


def environment(service: str, offered: Mapping[str, object]) -> dict[str, str]:
    """Return as environment what is offered and declared; raises ConfigurationError.

    The service's own check runs here too: a broken key in the user's environment is told before
    anything has started.
    """
    kind = settings_type(service)
    known = {key: value for key, value in offered.items() if key in kind.model_fields}
    try:
        kind.read(**known)
    except SettingsError as error:
        raise ConfigurationError(str(error)) from None
    return {prefix_of(service) + key.upper(): _text(value) for key, value in known.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
