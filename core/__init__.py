"""One trial: a recognizer, a budget, and the smaller recognizer that comes out."""
