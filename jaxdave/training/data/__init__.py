"""Samples of JSON lines as batches: read, ordered, packed, resumable."""
