"""Checkpoints, model families, tokenizers, and how files become arrays on devices.

It knows no decode loop.
"""
