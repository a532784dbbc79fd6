"""Accounts: signing in, passwords and API tokens. Permissions are Django's."""
