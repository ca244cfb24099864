"""What is tried, and until when."""
