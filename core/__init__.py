"""One trial: a recogniser, a budget, and the smaller recogniser that comes out."""
