"""Two thin adapters that bind the rules to the four RPC shapes: grpc.aio and threads."""
