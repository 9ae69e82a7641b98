"""Compiling, compiled programs on disk, platform settings and atomic files.

This package knows no model and no decoding.
"""
