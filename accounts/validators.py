"""Called by Django for every new password, whether set on a page, in the admin or by a command."""

from __future__ import annotations

from typing import Any

from accounts.services import end_tokens


class EndsTokens:
    """A new password ends the account's API tokens; sessions end by Django's own doing. Any password will do."""

    def validate(self, password: str, user: Any = None) -> None:
        """Nothing."""

    def password_changed(self, password: str, user: Any = None) -> None:
        """End the tokens."""
        end_tokens(user)

    def get_help_text(self) -> str:
        return "Changing your password signs out all other browsers and deletes your API tokens."
