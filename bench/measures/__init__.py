"""The measures that `python -m bench` takes."""
