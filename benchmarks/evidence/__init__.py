"""The evidence: every objective at its best setting on the worlds that train on a CPU. Imports all of guardlit."""
