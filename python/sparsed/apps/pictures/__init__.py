"""Patterns and generations as pictures: matplotlib figures, HTML in notebooks, a page, a terminal.

Nothing here is imported before it is asked for.
"""
