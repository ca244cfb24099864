"""What is swept: one TOML file a sweep; the folder is the registry."""
