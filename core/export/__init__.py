"""A model as files of other programs."""
