"""The recipes of the demo models, with batches and losses of their own."""
