"""Manifests of other programs, checked field by field before anything believes them."""
