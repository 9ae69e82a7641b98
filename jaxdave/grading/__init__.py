"""Graders: answer extraction and answer checking.

`extract` reads the answer out of a model's text, `mathematics` compares mathematical
answers by value, `programs` runs programs against their tests in the sandbox. Nothing
here depends on decoding or on a benchmark's files, so the same graders serve as rewards
in training.
"""
