"""Agents: who they are, which model answers for them, and the one adapter that lets AutoGen run them."""
