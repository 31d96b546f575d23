"""Queries, one module a part of the state."""
