"""The perceptron as MLServer runs it; imported by MLServer, in its own virtual environment."""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Small(MLModel):
    """onnxruntime on one thread."""

    async def load(self) -> bool:
        """Load the graph that the settings name."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(path, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run one request's rows."""
        features = NumpyCodec.decode_input(payload.inputs[0])
        (logits,) = self._session.run(None, {"features": features})
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)]
        )
