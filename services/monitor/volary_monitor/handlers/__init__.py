"""Requests in, domain and store calls, replies out."""
