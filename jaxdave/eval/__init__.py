"""Evaluation: benchmarks under published protocols, in one resumable run."""
