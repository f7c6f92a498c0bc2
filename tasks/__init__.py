"""What a step does: the Celery app and its tasks, pre-run hooks, agents and tools."""

assert __name__ == "convergio.tasks", "import convergio.tasks, not tasks"
