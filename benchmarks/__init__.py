"""Measurements of the product: one module per question, run by `convergio bench NAME`."""

assert __name__ == "convergio.benchmarks", "import convergio.benchmarks, not benchmarks"
