"""What users write and read: configuration files, options, one-line errors, the terminal. Imports errors and assets."""
