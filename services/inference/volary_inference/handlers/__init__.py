"""Protocols to engine and back: no policy, no state."""
