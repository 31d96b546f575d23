"""Volary monitor: keep the prediction log, join late truth, find drift, raise alerts."""
