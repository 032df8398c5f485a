"""What callbacks share: Lightning's names, outputs, scorers, statistics, loggers. Imports nothing of this package.

Public, for other packages that write callbacks: `tools.folders`, `tools.lightning`, `tools.logging` and
`tools.learning_rates`.
"""
