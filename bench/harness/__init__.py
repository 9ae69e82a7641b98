"""Parts shared by all benchmarks: models, paired timing, reports and plots."""
