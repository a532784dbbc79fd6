"""Users, groups, and identities at another site; tokens with owner, scopes and last use, and never their hashes."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django_otp.plugins.otp_totp.admin import TOTPDeviceAdmin
from django_otp.plugins.otp_totp.models import TOTPDevice
from knox.models import AuthToken

from accounts.models import Identity, Token
from captioner import audit
from captioner.admin.base import AdminWithPages, AsOnPages, Empty, ReadOnly

admin.site.unregister((AuthToken, User, Group, TOTPDevice))


@admin.register(Identity)
class IdentityAdmin(AdminWithPages):
    """Which account belongs to whom at the site through which people sign in; here accounts are connected by hand."""

    when_empty = Empty(
        "Nobody has signed in through another site yet: that connects an account, or [connect one] by hand.",
        "admin:accounts_identity_add",
        "accounts.add_identity",
    )
    list_display = ("user", "subject", "issuer")
    search_fields = ("subject", "user__username", "user__email")
    fields = ("user", "issuer", "subject")
    raw_id_fields = ("user",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Superusers alone: whoever connects an account to an identity of their own can sign in as it."""
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_superuser)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_superuser)

    def save_model(self, request: HttpRequest, obj: Identity, form: Any, change: bool) -> None:
        """Save it, and have it recorded: the identity may do now all that the account may."""
        with transaction.atomic():
            super().save_model(request, obj, form, change)
            audit.record(audit.Action.PERMISSIONS, f"user {obj.user}", f"connected to {obj}")

    def delete_model(self, request: HttpRequest, obj: Identity) -> None:
        self.delete_queryset(request, Identity.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Identity]) -> None:
        with transaction.atomic():
            for identity in queryset.select_related("user"):
                audit.record(audit.Action.PERMISSIONS, f"user {identity.user}", f"disconnected from {identity}")
            super().delete_queryset(request, queryset)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"issuer": settings.OIDC_ISSUER, **super().get_changeform_initial_data(request)}


@admin.register(Token)
class TokenAdmin(ReadOnly):
    """Tokens, to be looked at and deleted."""

    when_empty = Empty("No API tokens yet: [create one] for a program of yours; only its hash is kept.", "tokens")
    list_display = ("name", "user", "good_for", "created", "last_used_at", "expiry")
    list_filter = ("last_used_at", "expiry")
    search_fields = ("name", "user__username")
    fields = ("name", "user", "good_for", "created", "last_used_at", "expiry")

    @admin.display(description="good for")
    def good_for(self, token: Token) -> str:
        return ", ".join(token.scopes)

    def has_delete_permission(self, request: HttpRequest, obj: Token | None = None) -> bool:
        """Whoever may; the programs that use it are refused from then on."""
        return bool(request.user.has_perm("accounts.delete_token"))

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Their names: the list that Django makes has the hash, too, and nothing else hangs on a token."""
        tokens = list(objs)
        return [f"{token} of {token.user}" for token in tokens], {"tokens": len(tokens)}, set(), []


@admin.register(User)
class PeopleAdmin(UserAdmin):  # type: ignore[type-arg]  # generic for type checkers only
    """Django's own, with plain lists to choose from: the ones with two columns cannot be read aloud. When somebody
    signed in is not written by hand."""

    filter_horizontal = ()
    readonly_fields = ("last_login", "date_joined")

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Set somebody's password, and have it recorded: whoever sets it can sign in as them."""
        with transaction.atomic():
            answer = super().user_change_password(request, id, form_url)
            if isinstance(answer, HttpResponseRedirect):
                audit.record(audit.Action.PERMISSIONS, f"user {User.objects.get(pk=id)}", "password set")
        return answer


@admin.register(Group)
class GroupsAdmin(GroupAdmin):
    """The same."""

    when_empty = Empty(
        "No groups yet: [add one] with the permissions that its people are to have.",
        "admin:auth_group_add",
        "auth.add_group",
    )
    filter_horizontal = ()


@admin.register(TOTPDevice)
class DeviceAdmin(AsOnPages, TOTPDeviceAdmin):  # type: ignore[misc]  # the library has no types
    """The library's own; when a wrong code was typed is not written by hand, and deletions are in the audit log."""

    when_empty = Empty(
        "Nobody has two-factor authentication yet: [set it up] for your own account first.", "second-factor"
    )
    readonly_fields = (*TOTPDeviceAdmin.readonly_fields, "throttling_failure_timestamp")

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """Whose they were: without one, a password is enough to sign in."""
        for device in queryset:
            audit.record(audit.Action.PERMISSIONS, f"user {device.user}", "two-factor authentication removed")
        return super().log_deletions(request, queryset)
