"""What the registry decides; no gRPC, no SQL."""
