"""Checks under faults, in other runtimes and across versions."""
