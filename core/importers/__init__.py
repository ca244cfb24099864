"""Published models as bundles."""
