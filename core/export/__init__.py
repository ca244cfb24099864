"""Exports: a model as files that other programs load."""
