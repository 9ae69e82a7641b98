"""Checkpoints, model families and tokenizers, and how files become device arrays.

`checkpoint` is the entry point (`load`, `save`, `Model`). Nothing here knows the decode
loop, so a model can be read and written without compiling anything.
"""
