"""The benchmarks: where their items come from and how each is graded."""
