"""Who may list, open and change what."""

from __future__ import annotations

import ipaddress
from functools import reduce
from operator import or_
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db.models import Q
from django.utils.crypto import salted_hmac

EVERYBODY = "*"  # as a caption's visitor: an example that is shown to all
EXAMPLES = f"visitor:{EVERYBODY}"  # the sender of examples, and of what is imported into datasets


class Viewer:
    """Who looks: a signed-in user, or an anonymous visitor known by a random name in their session.

    Users see what is theirs, visitors what they asked for in the same browser, and all see the examples; whoever may
    view all captions in the admin sees all. Beside that, what belongs to no user can be reached by its id, which
    cannot be guessed, and changed so if no browser's visitor asked for it: that is how an anonymous program works.
    """

    def __init__(
        self, user: AbstractBaseUser | AnonymousUser | None = None, visitor: str = "", address: str = ""
    ) -> None:
        self.user: Any = user if user is not None and user.is_authenticated else None
        self.visitor = "" if self.user else visitor
        self.address = "" if self.user else address

    @property
    def flow(self) -> str:
        """Among whose captions theirs take their turns: the user's own, or those of the address, since a browser can
        become a new visitor at any time. Of the address no more is kept than tells it from others."""
        if self.user:
            return f"user:{self.user.pk}"
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return ""  # commands
        network = ipaddress.ip_network((address, 64 if address.version == 6 else 32), strict=False)
        return f"address:{salted_hmac('captioner.flow', str(network)).hexdigest()[:32]}"

    def listed(self) -> Q:
        """Captions and requests shown in the viewer's lists."""
        return reduce(or_, self.listed_parts())

    def listed_parts(self) -> list[Q]:
        """The same in parts, of which a database reads each from an index of its own; together it may read a million
        rows."""
        return [Q()] if self._may("view") else [Q(visitor=EVERYBODY), self.own()]

    def reachable(self) -> Q:
        """Those the viewer may open by id."""
        return Q() if self._may("view") else Q(owner=None) | self.own()

    def changeable(self) -> Q:
        """Those the viewer may cancel, try again and correct."""
        return Q() if self._may("change") else Q(owner=None, visitor="") | self.own()

    def deletable(self) -> Q:
        """Those the viewer may delete."""
        return Q() if self._may("delete") else Q(owner=None, visitor="") | self.own()

    def labels(self) -> Q:
        """Those the viewer is asked to label: what they requested, or everybody's if they may see and change all."""
        return Q() if self.votes else self.own()

    @property
    def votes(self) -> bool:
        """Whether the viewer may vote between captions: who is asked to label everybody's."""
        return self._may("view") and self._may("change")

    @property
    def sender(self) -> str:
        """Under which name the pictures that the viewer sends are kept, apart from the same ones of others; empty for
        somebody who cannot be known again."""
        if self.user:
            return f"user:{self.user.pk}"
        return f"visitor:{self.visitor}" if self.visitor else ""

    @property
    def sees_photos(self) -> bool:
        """Whether the viewer may see everybody's photos, those without a caption too, as the admin shows them."""
        return self.user is not None and bool(self.user.has_perm("captioner.view_image"))

    @property
    def takes_down(self) -> bool:
        """Whether the viewer may delete everybody's photos, with a reason."""
        return self.user is not None and bool(self.user.has_perm("captioner.delete_image"))

    @property
    def sees_all(self) -> bool:
        """Whether the viewer's lists show everybody's captions."""
        return self._may("view")

    def own(self) -> Q:
        """Those the viewer asked for."""
        if self.user:
            return Q(owner=self.user)
        return Q(owner=None, visitor=self.visitor) if self.visitor else Q(pk__in=())

    def _may(self, action: str) -> bool:
        return self.user is not None and bool(self.user.has_perm(f"captioner.{action}_caption"))
