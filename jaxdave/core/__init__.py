"""Data types and protocols that every other package speaks in.

What a model gives, what a policy and a draft function see, and the state of a decode.
It holds no algorithm and imports no other package.
"""
