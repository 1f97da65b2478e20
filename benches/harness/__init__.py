"""Runs programs and says what they cost: shared by peers/peers.py and capture/capture.py. Standard library only.

`process` runs and meters programs, `store` sees what they put, `work` makes the database and writes into it,
`chatkeep` is our service with a home of its own.
"""
