"""What users write and read: configuration files, options, errors of a line, the terminal. Imports errors and assets."""
