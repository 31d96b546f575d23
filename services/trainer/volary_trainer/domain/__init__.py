"""What the trainer decides; no gRPC, no SQL, no torch."""
