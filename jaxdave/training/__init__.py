"""Training of diffusion language models: tokenizer, batches, losses, loop, recipes."""
