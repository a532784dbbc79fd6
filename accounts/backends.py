"""Asked before anybody's password is looked at."""

from __future__ import annotations

from typing import Any

from accounts.throttles import count_sign_in


class AddressLimit:
    """Authenticates nobody. Refuses an address that tries too often, for whatever account."""

    def authenticate(self, request: Any, **_: Any) -> None:
        """Count a try.

        Raises:
            Refused: there were too many.
        """
        if request is not None:
            count_sign_in(request)
