"""Networks as pure functions of their parameters.

The transformer, attention, KV caches and prefill of block-causal and full-attention
models. Only files of this package use Flax.
"""
