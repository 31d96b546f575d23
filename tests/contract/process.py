"""A service as its own process, and the keys of those who call it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from volary_cli.launcher import declared
from volary_cli.launcher.engines import free_port
from volary_kit.client import connect
from volary_kit.clock import SystemClock
from volary_kit.errors import VolaryError
from volary_kit.identity import (
    KEY_ISSUER,
    SigningKey,
    mint_api_key,
    mint_service_token,
    write_jwks,
)
from volary_kit.outgoing.retry import NO_RETRY

from tests.contract.services import SERVICES, Contracted

START_S = 120.0  # on two busy cores; a quiet machine needs two
STOP_S = 30.0
POLL_S = 0.05
ISSUER = "gateway-issuing"
PEER = "launcher"  # a service identity that no service under test has
T = TypeVar("T")


@dataclass(frozen=True)
class Engines:
    """Where the engines are; `database_url` is None for a service without a schema."""

    database_url: str | None
    redis_url: str
    temporal_address: str


class Keys:
    """The private keys of a mesh in a folder, and the JWKS file of them all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.jwks = folder / "jwks.json"
        self._keys = {
            name: SigningKey.generate(name)
            for name in (ISSUER, PEER, *(service.name for service in SERVICES))
        }
        for name, key in self._keys.items():
            key.write(self.file(name))
        write_jwks(
            self.jwks,
            [
                key.public_jwk(KEY_ISSUER) if name == ISSUER else key.public_jwk()
                for name, key in self._keys.items()
            ],
        )

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def api_key(self, *roles: str, life_s: float = 3_600.0, project: str = "default") -> str:
        return mint_api_key(
            self._keys[ISSUER],
            "contract",
            roles,
            project=project,
            life_s=life_s,
            clock=SystemClock(),
        )

    def service_token(self) -> str:
        return mint_service_token(
            self._keys[PEER], project="default", on_behalf_of=None, clock=SystemClock()
        )

    def credential(self, allowed: Iterable[str]) -> str:
        """Return a credential of the strongest role that a row allows."""
        roles = [role for role in ("admin", "operator", "approver", "viewer") if role in allowed]
        if roles:
            return self.api_key(*roles)
        if "service" in allowed:
            return self.service_token()
        return self.api_key(*allowed)


@dataclass
class Running:
    """A started service; `addresses` are of its listeners, the data port first."""

    service: Contracted
    addresses: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    channels: dict[tuple[str, str | None], grpc.Channel] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def channel(self, address: str, credential: str | None = None) -> grpc.Channel:
        key = (address, credential)
        if key not in self.channels:
            self.channels[key] = connect(address, credential, retry=NO_RETRY)
        return self.channels[key]

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4_000:]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code; a process that stays is killed and fails."""
        for channel in self.channels.values():
            channel.close()
        self.channels.clear()
        if self.is_alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.service.name} ignored SIGTERM:\n{self.tail()}") from None


def start(service: Contracted, engines: Engines, keys: Keys, folder: Path) -> Running:
    """Start a service and wait until each of its listeners is live."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = {name: free_port() for name in service.ports}
    offered: dict[str, object] = ports | {
        "metrics_port": free_port(),
        "redis_url": engines.redis_url,
        "temporal_address": engines.temporal_address,
        "jwks_file": keys.jwks,
        "service_key_file": keys.file(service.name),
        "issuing_key_file": keys.file(ISSUER),
        "issuing_key_id": ISSUER,
        "envoy_credential_file": folder / "envoy-credential",
        "data_dir": folder / "data",
        "drain_delay_s": 0.3,
        "failpoints": True,  # switched off they answer UNIMPLEMENTED, as if nobody had built them
    }
    offered |= service.settings
    if engines.database_url is not None:
        offered["database_url"] = engines.database_url
    log = folder / f"{service.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"volary_{service.name}"],
            env=_environment() | declared.environment(service.name, offered),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    addresses = tuple(f"127.0.0.1:{port}" for port in ports.values())
    running = Running(service, addresses, log, process)
    try:
        for address in addresses:
            wait_for(lambda at=address: _is_live(running, at), f"{service.name} to start", running)
    except BaseException:
        process.kill()  # nobody else knows of it yet
        process.wait()
        raise
    return running


def wait_for(
    condition: Callable[[], T], what: str, running: Running, within_s: float = START_S
) -> T:
    """Return the first truthy answer; fail with the log when the process ends or time is up."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if found := condition():
            return found
        if not running.is_alive:
            raise AssertionError(f"{running.service.name} ended at start:\n{running.tail()}")
        time.sleep(POLL_S)
    raise AssertionError(f"waited {within_s} s for {what}:\n{running.tail()}")


def _is_live(running: Running, address: str) -> bool:
    stub = health_pb2_grpc.HealthStub(running.channel(address))
    try:
        reply = stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=1)
    except VolaryError:
        return False
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def _environment() -> dict[str, str]:
    """Return the environment without what another mesh may have left in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VOLARY_")}
