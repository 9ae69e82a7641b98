"""Compiling, compiled programs on disk, platform switches and atomic files.

It knows no model and no decoding.
"""
