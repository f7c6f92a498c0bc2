"""Processes: composition roots that build everything from settings, and the `convergio` command."""

assert __name__ == "convergio.workers", "import convergio.workers, not workers"
