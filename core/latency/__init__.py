"""Latency tables: measured, calibrated by whole models, and cached beside the teacher."""
