"""Kinds of corpora."""
