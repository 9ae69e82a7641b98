"""Evaluation: benchmarks under published protocols, in one resumable run.

`benchmarks` reads questions, `protocols` turns them into prompts and settings, `run`
decodes and grades them, `report` makes tables and figures, and `likelihood` estimates
log-likelihoods for the lm-evaluation-harness.
"""
