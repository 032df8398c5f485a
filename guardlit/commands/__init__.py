"""The commands of the command line, one file each. Imports everything below it; only cli.py imports it."""
