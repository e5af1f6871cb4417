"""The users domain: who may sign in, and with which scopes."""
