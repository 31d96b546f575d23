"""Whole tables at once: the point-in-time join, training sets and their statistics."""
