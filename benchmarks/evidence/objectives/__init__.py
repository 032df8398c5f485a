"""The second study: the objectives of the line on the digits, each clipped to the same share.

Imports parts of the first.
"""
