"""The tests: unit (no server), integration (real stores), acceptance (real processes), property, chaos."""
