"""The imperative shell:

Submit, claim, arrive, drain, sweep, journal, rebuild. The only place board and journal meet.
"""
