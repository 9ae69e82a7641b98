"""Training by block diffusion: tokenizer, batches, loss, loop and recipes."""
