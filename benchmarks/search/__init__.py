"""Benchmarks of samplers and early stopping."""
