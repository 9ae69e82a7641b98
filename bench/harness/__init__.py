"""What all measurements share: models, timing, reports and plots."""
