"""Training of masked-diffusion language models: the demo models are made by it.

`recipes` has the settings, `loop` the training loop; `block_batches` and `block_loss`
are for block-causal attention, `canvas` is both for full attention. `draft_loss` is for
draft models. `constrained` has optimisers for training under linear constraints.
"""
