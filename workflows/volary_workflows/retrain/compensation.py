"""What a retrain that is given up undoes: the operation that its last stage had begun."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from temporalio import activity
from volary.trainer.v1 import run_pb2
from volary_kit.channels import Channels
from volary_kit.errors import NotFound
from volary_kit.operations import operation_id
from volary_longrunning import operations_pb2, operations_pb2_grpc

from volary_workflows.retrain.messages import Abandoned, Begun

WAIT = Duration(seconds=2)


class CompensationActivities:
    """The activities that undo, over channels to the services that a retrain drives."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    @activity.defn
    async def abandon_operation(self, begun: Begun) -> Abandoned:
        """Cancel an operation and return when it has ended; one that never began is none.

        It is found by what it was asked with, so also when the reply that named it was lost. A
        run that was done before it heard of the cancellation has left a version.
        """
        name = f"projects/{begun.project}/operations/{begun.service}." + operation_id(
            begun.service, begun.method, begun.project, begun.request_id
        )
        stub = operations_pb2_grpc.OperationsStub(self._channels.to(begun.service))
        try:
            await stub.CancelOperation(operations_pb2.CancelOperationRequest(name=name))
        except NotFound:
            return Abandoned()
        operation = await stub.GetOperation(operations_pb2.GetOperationRequest(name=name))
        while not operation.done:
            operation = await stub.WaitOperation(
                operations_pb2.WaitOperationRequest(name=name, timeout=WAIT)
            )
        run = run_pb2.Run()
        if not operation.response.Unpack(run):
            return Abandoned(operation=name)
        version = run.model_version.rpartition("/")[2]
        return Abandoned(name, run.name, int(version) if version.isdigit() else 0)
