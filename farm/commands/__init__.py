"""The CLI's commands. Each module imports what it needs inside the command, so that `farm --help` stays quick."""
