"""The token that Envoy shows to its control plane, in the file that its bootstrap names."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from volary_kit.calls import DEFAULT_PROJECT
from volary_kit.clock import Clock
from volary_kit.identity import SigningKey, mint_service_token

RENEW_S = 1_200.0  # a third of a token's life
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105


class EnvoyCredential:
    """Write the file and renew it; Envoy reads it anew when it is replaced."""

    def __init__(self, path: Path, key: SigningKey, clock: Clock) -> None:
        self._path = path
        self._key = key
        self._clock = clock

    def write(self) -> None:
        """Replace the file by one with a fresh token, readable by its owner alone."""
        token = mint_service_token(
            self._key, project=DEFAULT_PROJECT, on_behalf_of=None, clock=self._clock
        )
        secret = {
            "@type": SECRET,
            "name": "credential",
            "generic_secret": {"secret": {"inline_string": token}},
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.fresh")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"resources": [secret]}, file)
        fresh.replace(self._path)

    async def renew_always(self) -> None:
        """Renew the token well before it ends, for ever."""
        while True:
            await asyncio.sleep(RENEW_S)
            self.write()
