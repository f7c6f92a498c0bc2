"""Definitions, pure: reading, validating and building workflows, their expressions, and the plan a run follows."""
