"""The Conformer, one file per part: what it computes, its axes, and its cost."""
