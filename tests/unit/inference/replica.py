"""A replica as a process of its own, with clients for its two ports."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2 as v2
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.inference.v1 import control_service_pb2_grpc, prediction_service_pb2_grpc
from volary_cli.launcher.engines import free_port
from volary_kit.client import connect_aio
from volary_kit.outgoing import Retry
from volary_kit.testing import eventually

from .peers import Keys, Peers

READY_S = 60.0  # seconds of imports on a machine that is busy with other tests
ONCE = Retry(attempts=1)


class Replica:
    """One `python -m volary_inference`; `data_dir` outlives a restart."""

    def __init__(
        self,
        folder: Path,
        keys: Keys,
        peers: Peers,
        redis_url: str | None,
        engine: str = "auto",
    ) -> None:
        self.keys = keys
        self.engine = engine
        self.port = self.control_port = 0
        self._arguments: tuple[str, ...] = ()
        self.data_dir = folder / "data"
        self._log = folder / "replica.log"
        self._environment = {
            "VOLARY_INFERENCE_DATA_DIR": str(self.data_dir),
            "VOLARY_INFERENCE_JWKS_FILE": str(keys.jwks),
            "VOLARY_INFERENCE_SERVICE_KEY_FILE": str(keys.service_key),
            "VOLARY_INFERENCE_GATEWAY_ADDRESS": peers.address,
            "VOLARY_INFERENCE_REGISTRY_ADDRESS": peers.address,
            "VOLARY_INFERENCE_FEATURES_ADDRESS": peers.address,
            "VOLARY_INFERENCE_DRAIN_DELAY_S": "0.2",
            "VOLARY_INFERENCE_ENGINE": engine,
        }
        if redis_url is not None:
            self._environment["VOLARY_INFERENCE_REDIS_URL"] = redis_url
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **environment: str) -> None:
        self._arguments = arguments
        self._environment |= environment
        self.port, self.control_port = free_port(), free_port()
        ports = {
            "VOLARY_INFERENCE_PORT": str(self.port),
            "VOLARY_INFERENCE_CONTROL_PORT": str(self.control_port),
        }
        command = [sys.executable, "-m", "volary_inference", *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | self._environment | ports, stdout=log, stderr=log
            )

    async def ready(self) -> None:
        await eventually(self._is_serving, within_s=READY_S, what="readiness of the replica")

    async def _is_serving(self) -> bool:
        self._require_alive()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            try:
                health = health_pb2_grpc.HealthStub(channel)
                reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                return False
            return reply.status == health_pb2.HealthCheckResponse.SERVING

    def _require_alive(self) -> None:
        """Start again where another process took the port that was free a moment ago."""
        assert self.process is not None
        if self.process.poll() is None:
            return
        log = self._log.read_text()
        assert "the port is taken" in log, log[-2_000:]
        self.start(*self._arguments)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 20)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def channel(self, credential: str | None = None) -> grpc.aio.Channel:
        credential = credential or self.keys.api_key()
        return connect_aio(f"127.0.0.1:{self.port}", credential, retry=ONCE, timeout_s=10)

    def v2(self, credential: str | None = None) -> v2_grpc.GRPCInferenceServiceAsyncStub:
        return v2_grpc.GRPCInferenceServiceStub(self.channel(credential))

    def predictions(self) -> prediction_service_pb2_grpc.PredictionServiceAsyncStub:
        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel())

    def control(
        self, credential: str | None = None
    ) -> control_service_pb2_grpc.ControlServiceAsyncStub:
        token = credential or self.keys.service_token()
        channel = connect_aio(f"127.0.0.1:{self.control_port}", token, retry=ONCE)
        return control_service_pb2_grpc.ControlServiceStub(channel)


def raw_request(
    rows: list[list[float]], model: str = "m", version: str = ""
) -> v2.ModelInferRequest:
    """A request with `features` as raw bytes."""
    array = np.array(rows, np.float32)
    request = v2.ModelInferRequest(model_name=model, model_version=version, id="call-1")
    request.inputs.add(name="features", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request


def typed_request(rows: list[list[float]], model: str = "m") -> v2.ModelInferRequest:
    """A request with `features` as typed contents."""
    request = v2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="features", datatype="FP32", shape=[len(rows), len(rows[0])])
    tensor.contents.fp32_contents.extend(value for row in rows for value in row)
    return request


def raw_output(response: v2.ModelInferResponse) -> list[float]:
    return np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
