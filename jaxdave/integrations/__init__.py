"""jaxdave's models in other people's programs."""
