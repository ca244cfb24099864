"""A sweep's directory on an object store: worked on here, kept there."""
