"""Experiments: who gets which version, what it does to a metric, and an end without harm."""
