"""Many trials: what to try, where, and which stand on the front."""
