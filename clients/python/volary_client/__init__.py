"""Volary client: typed sync and async clients of every service."""
