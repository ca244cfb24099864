"""What every pruning method shares."""
