"""Volary registry: say what is in production, trained when, on what, against the previous."""
