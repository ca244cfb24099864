"""Published recognisers brought in as bundles, whatever they were trained with."""
