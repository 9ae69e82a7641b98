"""jaxdave-convert: checkpoints of PyTorch diffusion language models for jaxdave."""
