"""What `DiffusersPolicy` consists of, one class a concern. Imports devices, base.py, folders, network, weights."""
