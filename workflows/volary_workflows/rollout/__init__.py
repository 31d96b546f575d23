"""Carry one version from its gate into production, or back."""
