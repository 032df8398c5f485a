"""What a round costs beside a bare loop over the same model: `python -m benchmarks.loop`."""
