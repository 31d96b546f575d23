"""The engine: tensors, versions, batching, admission, events. No gRPC, no Redis, no registry."""
