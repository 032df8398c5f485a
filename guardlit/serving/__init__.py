"""An HTTP server of scorers, for runs in other processes and on other machines. Imports types and rewards."""
