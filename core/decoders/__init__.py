"""Decoders: from an encoder's frames to tokens, one file each."""
