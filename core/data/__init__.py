"""A name or a path becomes batches."""
