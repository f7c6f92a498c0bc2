"""The scheduler: definitions, the pure decision, the board (Redis), the journal (SQL) and the engine between them."""

assert __name__ == "convergio.graphflow", "import convergio.graphflow, not graphflow"
