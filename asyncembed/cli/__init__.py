"""The command line, `asyncembed` and `python -m asyncembed`: the group is in `commands`, each command in its module."""
