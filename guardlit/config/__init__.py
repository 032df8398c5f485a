"""What users write and read: configuration files, options, errors of one line, the terminal. Imports errors."""
