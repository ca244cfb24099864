"""The single source of truth."""
