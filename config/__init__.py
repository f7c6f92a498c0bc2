"""Values only: settings, and what is fixed before anything runs. Imports nothing of the other packages."""

assert __name__ == "convergio.config", "import convergio.config, not config"
