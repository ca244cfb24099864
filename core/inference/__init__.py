"""Transcribes audio."""
