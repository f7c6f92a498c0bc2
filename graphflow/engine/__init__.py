"""The imperative shell: submit, claim, arrive, drain, sweep, journal, rebuild. The only place board and journal meet."""
