"""GenEval: prompts, detector and rules. Imports rewards/ alone."""
