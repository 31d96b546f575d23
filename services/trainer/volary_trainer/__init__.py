"""Volary trainer: train a model from one file, repeatably."""
