"""A command line as source files describe it, before anything is imported. Imports errors and config."""
