"""Load for gRPC servers."""
