"""Tokens in the admin: owner, scopes, last use. Hashes are never shown."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest
from knox.models import AuthToken

from accounts.models import Token
from captioner.admin.base import ReadOnly

admin.site.unregister(AuthToken)


@admin.register(Token)
class TokenAdmin(ReadOnly):
    """Tokens, to be looked at and deleted."""

    list_display = ("name", "user", "good_for", "created", "last_used_at", "expiry")
    list_filter = ("last_used_at", "expiry")
    search_fields = ("name", "user__username")
    list_select_related = ("user",)
    fields = ("name", "user", "good_for", "created", "last_used_at", "expiry")

    @admin.display(description="good for")
    def good_for(self, token: Token) -> str:
        return ", ".join(token.scopes)

    def has_delete_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        """Whoever may; the programs that use it are refused from then on."""
        return bool(request.user.has_perm("accounts.delete_token"))
