"""Volary features: define features once and serve the same bits offline and online."""
