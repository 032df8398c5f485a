"""Imported last by the server of `forked`: keeps its imports from the collector, which each run calls."""

import gc

gc.collect()
gc.freeze()
