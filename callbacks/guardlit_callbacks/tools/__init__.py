"""What callbacks share: Lightning's names, outputs, scorers, statistics, loggers. Imports nothing of this package.

Public, for other packages that write callbacks: `tools.lightning`, `tools.logging`, `tools.learning_rates`.
"""
