"""Made-up outcomes and clusters."""
