"""The paper's tables and figure: benchmarks, graders, metrics and one resumable run."""
