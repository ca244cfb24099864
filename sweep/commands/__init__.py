"""What a person can ask for: each command is a function, and what it needs is imported in it."""
