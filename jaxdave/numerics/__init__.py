"""How weights are stored and multiplied, and how far computed numbers may be off."""
