"""Queries on the definitions and the training sets."""
