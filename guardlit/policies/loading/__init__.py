"""Pipeline folders, checked before anything of them is loaded. Imports policies/ alone."""
