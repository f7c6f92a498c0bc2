"""The imperative shell, and the only place where board and journal meet.

Submit, claim, arrive, drain, journal, sweep, rebuild.
"""
