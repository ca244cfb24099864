"""One-shot pruning: smaller models at once, without training."""
