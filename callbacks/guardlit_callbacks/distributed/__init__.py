"""Gathering, sharded parameters and gradients on several ranks; public: other packages may use it."""
