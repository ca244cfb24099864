"""Configuration of one trial."""
