"""Pruning: spaces, budgets, extraction, repair and scores, shared by all methods."""
