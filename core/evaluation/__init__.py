"""Evaluation: transcripts of splits, word error rates and the speed of models."""
