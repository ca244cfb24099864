"""Benchmarks of what pruned models recognize."""
