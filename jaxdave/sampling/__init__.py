"""From hidden vectors to predictions.

The chunked output head, counter-based noise, filters and confidence scores.
"""
