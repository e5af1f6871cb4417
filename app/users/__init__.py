"""The users domain: accounts, their scopes, and sign-in."""
