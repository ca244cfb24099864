"""Runs the trials on Ray."""
