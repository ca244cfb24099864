"""Evaluation: what a model hears, how often it is wrong, and how fast it is."""
