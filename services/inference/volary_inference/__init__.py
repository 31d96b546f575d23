"""Volary inference: serve the Open Inference Protocol V2."""
