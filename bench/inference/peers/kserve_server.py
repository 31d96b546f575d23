"""The perceptron as KServe runs it: `python kserve_server.py GRAPH GRPC_PORT HTTP_PORT`."""

from __future__ import annotations

import logging
import sys
from typing import Any

import onnxruntime
import uvicorn
from grpc import aio
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

LOOPBACK = "127.0.0.1"


class Small(Model):
    """onnxruntime on one thread."""

    def __init__(self, path: str) -> None:
        super().__init__("small")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options)
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: Any = None,  # noqa: ARG002 - KServe's own signature
        response_headers: Any = None,  # noqa: ARG002
    ) -> InferResponse:
        """Run one request's rows."""
        features = payload.inputs[0].as_numpy()
        (logits,) = self._session.run(None, {"features": features})
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=True)
        return InferResponse(payload.id, "small", [output])


def stay_on_the_loopback() -> None:
    """Bind both ports to 127.0.0.1: KServe has no setting, and binds every interface."""
    make, configure = aio.server, uvicorn.Config

    def server(*args: Any, **options: Any) -> aio.Server:
        made = make(*args, **options)
        bind = made.add_insecure_port
        made.add_insecure_port = lambda address: bind(address.replace("[::]", LOOPBACK))
        return made

    def config(*args: Any, **options: Any) -> uvicorn.Config:
        return configure(*args, **{**options, "host": LOOPBACK})

    aio.server, uvicorn.Config = server, config


if __name__ == "__main__":
    stay_on_the_loopback()
    server = ModelServer(
        grpc_port=int(sys.argv[2]),
        http_port=int(sys.argv[3]),
        workers=1,
        enable_grpc=True,
        enable_latency_logging=False,
    )
    logging.getLogger("kserve").setLevel(logging.WARNING)  # it writes a line a call otherwise
    server.start([Small(sys.argv[1])])
