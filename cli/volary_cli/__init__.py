"""Volary command line."""
