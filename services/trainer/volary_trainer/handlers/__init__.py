"""Handlers translate: request, domain and store, reply."""
