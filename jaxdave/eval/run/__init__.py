"""Running an evaluation: configuration, plan, records and progress."""
