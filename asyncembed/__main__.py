"""The shell's way in: `python -m asyncembed`, and the program `asyncembed`."""

from asyncembed.cli.commands import main

if __name__ == "__main__":
    main(prog_name="asyncembed")
