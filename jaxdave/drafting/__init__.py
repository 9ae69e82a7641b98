"""Draft functions: guesses of the states that the next steps will reach.

They come from the model's last prediction (`nested`), from calibrated trees (`tree`),
from text (`text_drafts`) or from a draft model (`draft_model`); `draft_length` chooses
how many a call verifies.
"""
