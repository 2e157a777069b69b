"""The calls that users make, in Python and by command: here alone an option has its name, default and text.

Each call imports what it needs when it is made. `anatogen.cli` derives its commands from these signatures and
docstrings; `anatogen` offers them by name.
"""
