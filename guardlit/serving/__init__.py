"""`guardlit serve-reward`: scorers behind HTTP, for trainings in other processes and on other machines."""
