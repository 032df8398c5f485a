"""How the network computes: precision, attention, compiling, decoding. Imports policies/ alone."""
