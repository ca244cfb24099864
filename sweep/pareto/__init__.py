"""Fronts."""
