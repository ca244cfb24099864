"""Corpora: a name or a path becomes batches of features and tokens."""
