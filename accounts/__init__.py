"""People's accounts: how they sign in, their passwords and API tokens. What they may do is Django's permissions."""
