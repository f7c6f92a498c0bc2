"""Conversations: who speaks next, and when it is over. Pure: values in, verdicts out."""
