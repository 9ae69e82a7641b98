"""Draft functions: guesses of the states that the next steps will reach.

They come from the model's last prediction, from calibrated trees or from text;
`draft_length` chooses how many a call verifies.
"""
