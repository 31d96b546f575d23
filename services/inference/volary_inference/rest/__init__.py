"""V2 over HTTP: REST calls become the gRPC calls that they stand for, and nothing else."""
