"""One file a pruning method; the folder is the registry."""
