"""Volary workflows: retrain, evaluate, shadow, canary, roll out, roll back."""
