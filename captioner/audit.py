"""The audit log: what staff and trainers did. Entries are written in the same transaction and are never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from django.contrib.auth.models import Group, User
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.throttling import BaseThrottle

from captioner.models import AuditEntry

Action = AuditEntry.Action

NAMED = 20  # rows of one deed that are named
_GRANTS = ("is_active", "is_staff", "is_superuser")
_request: ContextVar[HttpRequest | None] = ContextVar("request", default=None)


class Acting:
    """Middleware: what is recorded meanwhile was done by the user of this request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request, of which entries are recorded meanwhile."""
        token = _request.set(request)
        try:
            return self.get_response(request)
        finally:
            _request.reset(token)


def record(action: AuditEntry.Action, subject: object, detail: str = "", person: Any = None) -> None:
    """Record an action.

    Args:
        subject: what it was done to.
        person: who did it, where no request tells that; None for a command or a policy.
    """
    request = _request.get()
    if request is not None and request.user.is_authenticated:
        person = request.user
    AuditEntry.objects.create(
        who=person.get_username() if person else "",
        user_id=person.pk if person else None,
        address=str(BaseThrottle().get_ident(request) or "")[:45] if request is not None else "",
        action=action,
        subject=str(subject)[:200],
        detail=detail,
    )


def record_deletion(what: str, rows: Iterable[Any]) -> None:
    """Write down which rows are about to be deleted; of many, the first ones and their number."""
    names = [str(row) for row in rows]
    more = f" … {len(names):,} in all" if len(names) > NAMED else ""
    if names:
        record(Action.DELETED, f"{len(names):,} {what}", "; ".join(names[:NAMED]) + more)


def watch_permissions() -> None:
    """From now on, record whatever changes what people may do, however that is done."""
    for through in (User.groups.through, User.user_permissions.through, Group.permissions.through):
        m2m_changed.connect(_given_or_taken, sender=through, dispatch_uid=f"audit {through.__name__}")
    pre_save.connect(_before_saving, sender=User, dispatch_uid="audit before")
    post_save.connect(_made, sender=User, dispatch_uid="audit made")
    for model in (User, Group):
        post_delete.connect(_deleted, sender=model, dispatch_uid=f"audit deleted {model.__name__}")


def _given_or_taken(instance: Any, action: str, model: Any, pk_set: set[Any] | None, using: str, **_: Any) -> None:
    done = {"post_add": "given", "post_remove": "taken", "pre_clear": "taken: all"}.get(action)
    if done:
        names = "; ".join(map(str, model.objects.using(using).filter(pk__in=pk_set or ())))
        record(Action.PERMISSIONS, f"{instance._meta.verbose_name} {instance}", f"{done} {names}".strip())


def _before_saving(instance: User, raw: bool, update_fields: Iterable[str] | None, **_: Any) -> None:
    if raw or instance.pk is None or (update_fields is not None and not set(update_fields) & set(_GRANTS)):
        return
    before = User.objects.filter(pk=instance.pk).values(*_GRANTS).first() or {}
    changed = [name for name, value in before.items() if getattr(instance, name) != value]
    if changed:
        now = ", ".join(f"{name}: {getattr(instance, name)}" for name in changed)
        record(Action.PERMISSIONS, f"user {instance}", now)


def _made(instance: User, created: bool, raw: bool, **_: Any) -> None:
    granted = [name for name in ("is_staff", "is_superuser") if getattr(instance, name)]
    if created and not raw and granted:
        record(Action.PERMISSIONS, f"user {instance}", f"made with {', '.join(granted)}")


def _deleted(instance: Any, **_: Any) -> None:
    record(Action.DELETED, f"{instance._meta.verbose_name} {instance}")
