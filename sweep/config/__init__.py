"""Configuration of a sweep."""
