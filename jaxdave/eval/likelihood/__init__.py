"""Likelihoods of answers under a diffusion model, by their published estimators."""
