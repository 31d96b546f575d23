"""Envoy's configuration as immutable data, and the protocol that carries it."""
