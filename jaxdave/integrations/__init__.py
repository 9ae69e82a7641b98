"""Adapters through which other tools drive jaxdave."""
