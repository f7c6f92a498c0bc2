"""Redis: the board that schedules.

Every key in `keys`, every script in `lua/`, one typed function per script in `scripts`.
"""
