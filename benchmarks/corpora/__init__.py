"""Builders of the corpora that results use."""
