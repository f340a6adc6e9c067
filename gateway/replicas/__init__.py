"""What replicas of the gateway share through Redis: their limits.

wire.py speaks its protocol; link.py keeps a connection; limiter.py admits and settles requests with the Lua scripts
beside it; docs/decisions/012.
"""
