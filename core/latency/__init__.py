"""Latency tables."""
