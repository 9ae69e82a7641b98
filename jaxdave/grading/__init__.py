"""Graders: reading answers out of text and judging them.

Mathematics by value, programs by their tests. Evaluation and rewards are built on it.
"""
