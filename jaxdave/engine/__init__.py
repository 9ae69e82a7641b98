"""The host's side of a decode.

Configuration, batching, compiled loops, autotuning, compaction of finished rows, and
results. It knows no files of models.
"""
