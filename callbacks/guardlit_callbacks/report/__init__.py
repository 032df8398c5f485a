"""One HTML page of figures and tables from run folders. Imports `figures` and `tools`, neither torch nor Lightning.

Public: `report.writer.build`, `report.labels.ConfigKeys`, and `report.writer.execute` for other command lines.
"""
