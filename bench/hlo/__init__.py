"""Compiled programs as XLA prints them: what they run, copy, read and exchange."""
