"""Volary gateway: drive Envoy and keep the evidence of each step."""
