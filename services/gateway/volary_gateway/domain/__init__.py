"""What gateway decides; no gRPC, SQL or Envoy message in here."""
