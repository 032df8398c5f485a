"""The sets of weights of a policy: adapters, copies, merging, quantization. Imports policies/ alone."""
