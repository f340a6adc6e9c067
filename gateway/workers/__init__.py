"""More processes than one behind one address: a supervisor, the keeper of the engines, and the workers.

start.py chooses; supervisor.py forks; keeper.py owns the engines; worker.py serves clients; docs/decisions/005.
"""
