"""Benchmarks, run from the repository as `python -m benchmarks.quality.front`."""
