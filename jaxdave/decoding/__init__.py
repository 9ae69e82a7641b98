"""The decode loop on the device: prefill, propose, verify, commit, recheck.

Tokens are written in one place, `commit.py`. It knows no files and no host loop.
"""
