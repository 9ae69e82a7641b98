"""Published evaluation protocols: prompts, settings and their known deviations."""
