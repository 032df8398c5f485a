"""Recipes: what each trains, how far it is tested, and a copy to edit. Imports config, files and errors."""
